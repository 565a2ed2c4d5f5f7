"""
Stories and questions as a reinforcement-learning problem: observe a story word by word, then act the words of the answer.

Tasks: Weston et al., "Towards AI-complete question answering: a set of prerequisite toy tasks" (bAbI), 2015,
https://arxiv.org/abs/1502.05698.

Shapes: ``B`` worlds, ``P`` stories.
"""

from collections.abc import Sequence
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rmc_rl.envs.base import BatchedWorld
from rmc_rl.envs.parts import drawing
from rmc_rl.envs.parts.keywords import bounds, draw_whole, require_memory, whole, whole_or_range
from rmc_rl.envs.parts.stories import (
    ASKS,
    MIXED,
    OBJECTS,
    PEOPLE,
    PLACES,
    SPLITS,
    TASKS,
    VOCABULARY,
    Cast,
    Story,
    babi_tasks,
    read_babi,
)
from rmc_rl.envs.parts.texts import TextWorld, group_bounds
from rmc_rl.errors import require, require_choice

_WORDS_PER_SENTENCE, _WORDS_PER_QUESTION = 12, 12  # with the full stop, at most
_LINES, _LINE, _WIDTH = 9, 20, 400  # of a picture: lines, and pixels


class StoriesWorld(TextWorld):
    """
    Description
    -----------
    The agent observes a story of ``n_sentences`` sentences and a question about it, one word per step, then question marks for
    as many steps as the answer has words. At the question marks it must act the words of the answer. The ``task`` decides
    what the stories are about; in brackets is the task of bAbI that it resembles:

    * "where" (1): people go from place to place. ``where is mary``
    * "object" (2): people also take and drop objects. ``where is the milk``: where it was left, or where its carrier is
    * "who" (5): people also give objects to each other. ``who has the milk``
    * "yesno" (6): people go from place to place. ``is mary in the garden``
    * "count" (7): as "who". ``how many objects is mary carrying``
    * "list" (8): as "who". ``what is mary carrying``: all of it, in the order in which it came to her, or "nothing"
    * "position" (17): coloured shapes on a grid, each next to another. ``is the red square left of the pink circle``
    * "path" (19): places on a grid. ``how do you go from the garden to the office``: the directions, step by step
    * "mixed": each of these in an equal part of the stories

    Episodes draw from a pool of ``n_stories`` stories, which are written when the world is made (in about a second for the
    default number). ``pool_seed`` decides which stories they are, independently of the seed of ``reset``. To evaluate on new
    stories, use another ``pool_seed`` than in training.

    ``data`` is a folder with the original files of bAbI, such as ``qa1_single-supporting-fact_train.txt``. Then ``task`` is
    "qa1", "qa2" and so on, or "mixed" for all in the folder; an episode is a question with all statements before it.

    Action Space
    ------------
    ``Discrete(n)``: a word of the answers: the places (6 for the default), people or objects in the story and "nothing",
    numbers from "none" on, "yes" and "no", or directions. For "mixed", all of these; with ``data``, the answers in its files.
    Actions have no effect before the question marks. The attribute ``answer_words`` lists the words.

    Observation Encoding
    --------------------
    ``Discrete(V + 1)``: a word; ``V`` is the question mark. Generated stories have the same words in all tasks (75 and the
    question mark), of which the full stop is one. The attribute ``words`` lists them.

    Rewards
    -------
    For each right word 1 divided by the number of words of the answer, otherwise 0. So the return is the share of right
    words. bAbI counts an answer as right only if all its words are.

    Termination
    -----------
    The episode terminates with the last word of the answer, after as many steps as story, question and answer have words. It
    is never truncated.

    Memory demand
    -------------
    Facts in the first sentence may be needed for the answer. What must be remembered is known only when the question is
    asked, at the end. Return of perfect play: 1. Of random play: 1 divided by the number of actions, 0.17 for the default.
    The best a memoryless player can do is to act the same word at each question mark: the share of the most frequent word,
    0.17 for the default.

    Answers
    -------
    The right word at each question mark.

    Registered Configurations
    -------------------------
    ``rmc_rl/Stories-v0``: four people in six places, four sentences, "where". bAbI: 2 to 10 sentences with distractors in its
    first task, up to hundreds in later ones.

    Differences from bAbI: its stories ask several questions on the way; here each episode asks one, at the end. Its answers
    with several words are one label; here they are acted word by word, and the number of question marks tells how many.

    :param num_envs: ``B``, number of copies
    :param task: what the stories are about
    :param n_sentences: of a story; or a range ``[low, high]``, drawn per episode. "object" needs at least 2, "position" at
        most 11, "path" at most ``n_places - 1``
    :param n_people: people that may be in a story, 2 to 8
    :param n_places: places that may be in a story, 2 to 12
    :param n_objects: objects that may be in a story, 1 to 6
    :param n_stories: ``P``, the size of the pool, of which each number of sentences has an equal part
    :param pool_seed: which stories are in the pool
    :param data: a folder with bAbI's files; None: generated stories
    :param split: "train" or "test", which of bAbI's files are used
    :param device: where the tensors are
    :param render_mode: None, or "rgb_array": the last sentences so far, the present one in black, and below them the answer
        of the agent (green: right, red: wrong)
    :raises UsageError: for an unknown task, sizes outside these limits, or files that are missing or broken
    """

    ranges = ("n_sentences",)
    metadata: dict[str, Any] = BatchedWorld.metadata | {"render_modes": ["rgb_array"]}

    def __init__(
        self,
        num_envs: int = 1,
        task: str = "where",
        n_sentences: int | Sequence[int] = 4,
        n_people: int = 4,
        n_places: int = 6,
        n_objects: int = 3,
        n_stories: int = 2**13,
        pool_seed: int = 0,
        data: str | None = None,
        split: str = "train",
        device: torch.device | str = "cpu",
        render_mode: str | None = None,
    ):
        self.task, self.split, self.data = task, split, data
        self.n_sentences = whole_or_range("n_sentences", n_sentences)
        self.n_people = whole("n_people", n_people, 2, len(PEOPLE))
        self.n_places = whole("n_places", n_places, 2, len(PLACES))
        self.n_objects = whole("n_objects", n_objects, 1, len(OBJECTS))
        self.n_stories, self.pool_seed = whole("n_stories", n_stories), whole("pool_seed", pool_seed, at_least=0)
        require_choice("split", split, SPLITS)
        self._fewest = bounds(self.n_sentences)[0]
        if data is None:
            self._write()
        else:
            self._read(data)
        code = {word: index for index, word in enumerate(self.words)}
        action = {word: index for index, word in enumerate(self.answer_words)}
        texts = [[code[word] for word in story.words] for story in self.pool]
        results = [[action[word] for word in story.answer] for story in self.pool]
        super().__init__(num_envs, texts, results, self._bounds, len(code), len(action), device, render_mode)

    def _write(self) -> None:
        """The pool, its groups and words, from the grammar."""
        require_choice("task", self.task, [*TASKS, MIXED])
        tasks = list(TASKS.values()) if self.task == MIXED else [TASKS[self.task]]
        cast = Cast(PEOPLE[: self.n_people], PLACES[: self.n_places], OBJECTS[: self.n_objects])
        fewest, most = bounds(self.n_sentences)
        least = max(task.least for task in tasks)
        limits = [task.most(cast) for task in tasks if task.most]
        why = f"if task is '{self.task}'" + (f" and n_places is {self.n_places}" if limits else "")
        require(fewest >= least, f"n_sentences must be at least {least} {why}", self.n_sentences)
        require(
            not limits or most <= min(limits), f"n_sentences must be at most {min(limits, default=0)} {why}", self.n_sentences
        )
        n_bytes = 8 * self.n_stories * (_WORDS_PER_SENTENCE * most + _WORDS_PER_QUESTION)
        require_memory(n_bytes, n_stories=self.n_stories, n_sentences=self.n_sentences)
        counts = range(fewest, most + 1)
        rule = f"n_stories must be at least {len(counts) * len(tasks)}, one for each number of sentences and task"
        require(self.n_stories >= len(counts) * len(tasks), rule, self.n_stories)
        random = Random(self.pool_seed)
        self._bounds = group_bounds(self.n_stories, len(counts))
        self.pool: list[Story] = [
            tasks[row % len(tasks)].write(count, cast, random)
            for count, size in zip(counts, np.diff(self._bounds), strict=True)
            for row in range(size)
        ]
        self.words = VOCABULARY
        self.answer_words = tuple(dict.fromkeys(word for task in tasks for word in task.answers(cast)))

    def _read(self, folder: str) -> None:
        """The pool and its words, from the files of bAbI. Both splits have the same words, in the same order."""
        generated = ("n_sentences", "n_people", "n_places", "n_objects", "n_stories", "pool_seed")
        changed = [name for name in generated if not self._has_defaults(name)]
        require(not changed, "data must be alone: it decides the stories", ", ".join(changed))
        names = babi_tasks(folder)
        require_choice("task", self.task, [*names, MIXED])
        chosen = names if self.task == MIXED else (self.task,)
        stories = {split: [story for name in chosen for story in read_babi(folder, name, split)] for split in SPLITS}
        self.pool = stories[self.split]
        self._bounds = group_bounds(len(self.pool), 1)
        both = [*stories["train"], *stories["test"]]
        self.words = tuple(sorted({word for story in both for word in story.words}))
        self.answer_words = tuple(sorted({word for story in both for word in story.answer}))

    def _draw_groups(self, count: int) -> Tensor:
        if self.data is not None:
            return torch.zeros(count, dtype=torch.long, device=self.device)
        return draw_whole(self.n_sentences, count, self.generator) - self._fewest

    def _present_groups(self) -> Sequence[int]:
        if self.data is not None:
            return (0,)
        fewest, most = bounds(self.n_sentences)
        return range(fewest - self._fewest, most - self._fewest + 1)

    def _picture(self, index: int) -> np.ndarray:
        story, time = self.pool[int(self.text[index])], int(self.time[index])
        asked = len(story.words)
        told = " ".join([*story.words, ASKS][: time + 1]).replace(" . ", " .\n").removesuffix(" .").split("\n")
        lines = [line.removesuffix(" .") for line in told][-(_LINES - 1) :]
        frame = np.full((_LINES * _LINE, _WIDTH, 3), drawing.PAPER, dtype=np.uint8)
        for row, line in enumerate(lines):
            colour = drawing.DARK if row == len(lines) - 1 else drawing.SEEN
            drawing.write(frame, line, _WIDTH / 2, (row + 0.5) * _LINE, colour)
        acted = [action for action in self.acted[index].tolist()[asked:] if action >= 0]
        for place, (action, right) in enumerate(zip(acted, story.answer, strict=False)):
            word = self.answer_words[action]
            x = (place + 0.5) * _WIDTH / len(story.answer)
            colour = drawing.RIGHT if word == right else drawing.WRONG
            drawing.write(frame, word, x, (_LINES - 0.5) * _LINE, colour)
        return frame
