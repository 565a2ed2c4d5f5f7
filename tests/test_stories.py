"""Stories: that the text alone gives the answers, what each player gets, and the files of bAbI."""

import re
from itertools import pairwise
from random import Random

import numpy as np
import pytest
import torch
from playing import answering, first_returns, play, random_actions

from rmc_rl.envs.parts import drawing
from rmc_rl.envs.parts.stories import COUNTS, MIXED, OBJECTS, PEOPLE, PLACES, SIDES, STEPS, TASKS, VOCABULARY, Cast
from rmc_rl.envs.worlds.stories import StoriesWorld
from rmc_rl.errors import UsageError

CAST = Cast(PEOPLE[:4], PLACES[:6], OBJECTS[:3])
tasks = pytest.mark.parametrize("task", TASKS)


def read(words):
    """The sentences of a story and its question, as texts."""
    *sentences, question = " ".join(words).split(" . ")
    return sentences, question


def carried_and_places(sentences):
    """A reader's own account of a story: what each person carries, in order, and where people and objects are."""
    carried, places = {person: [] for person in PEOPLE}, {}
    for sentence in sentences:
        words = sentence.split()
        person, thing = words[0], words[-1]
        if thing in PLACES:
            places[person] = thing
        elif words[-2] == "to":  # gave the milk to mary
            given = words[3]
            carried[person].remove(given)
            carried[thing].append(given)
            assert places.get(person) == places.get(thing)
        elif words[1] in ("dropped", "discarded", "left", "put"):
            carried[person].remove(thing)
            places[thing] = places[person]
        else:
            assert all(thing not in things for things in carried.values())
            assert thing not in places or places[thing] == places[person]
            places.pop(thing, None)
            carried[person].append(thing)
    return carried, places


def cells_of(sentences, steps):
    """Where each name is on a grid, and the sentences as triples."""
    links = [re.fullmatch(r"the (.+) is (.+?)(?: of)? the (.+)", sentence).groups() for sentence in sentences]
    cells = {links[0][2]: (0, 0)}
    while len(cells) <= len(links):
        for name, side, other in links:
            x, y = steps[side] if side in steps else steps[f"{side} of"]
            if other in cells and name not in cells:
                cells[name] = cells[other][0] + x, cells[other][1] + y
            if name in cells and other not in cells:
                cells[other] = cells[name][0] - x, cells[name][1] - y
    assert len(set(cells.values())) == len(cells)
    return cells, links


def answer(task, words):
    """The answer of a reader who sees nothing but the words."""
    sentences, question = read(words)
    asked = question.split()
    if task == "position":
        cells, _ = cells_of(sentences, SIDES)
        one, side, other = re.fullmatch(r"is the (\w+ \w+) (.+) the (\w+ \w+)", question).groups()
        (x, y), (to_x, to_y) = cells[one], cells[other]
        return ("yes" if {"above": y > to_y, "below": y < to_y, "left of": x < to_x, "right of": x > to_x}[side] else "no",)
    if task == "path":
        return None  # checked by walking, below
    carried, places = carried_and_places(sentences)
    thing = asked[-1]
    carrier = {each: person for person, things in carried.items() for each in things}
    return {
        "where": lambda: (places[thing],),
        "object": lambda: (places[carrier.get(thing, thing)],),
        "who": lambda: (carrier[thing],),
        "yesno": lambda: ("yes" if places[asked[1]] == thing else "no",),
        "count": lambda: (COUNTS[len(carried[asked[4]])],),
        "list": lambda: tuple(carried[asked[2]]) or ("nothing",),
    }[task]()


@tasks
@pytest.mark.parametrize("n_sentences", [2, 5])
def test_the_words_alone_give_the_answer(task, n_sentences):
    random, stories = Random(0), []
    for _ in range(300):
        story = TASKS[task].write(n_sentences, CAST, random)
        stories.append(story)
        assert set(story.words) <= set(VOCABULARY)
        assert set(story.answer) <= set(TASKS[task].answers(CAST))
        assert story.words.count(".") == n_sentences
        if task != "path":
            assert story.answer == answer(task, story.words), " ".join(story.words)
    assert len(set(stories)) > 200


@pytest.mark.parametrize("n_sentences", [1, 2, 5])
def test_paths_lead_along_the_sentences(n_sentences):
    random = Random(0)
    for _ in range(300):
        story = TASKS["path"].write(n_sentences, CAST, random)
        sentences, question = read(story.words)
        cells, links = cells_of(sentences, STEPS)
        at = {cell: name for name, cell in cells.items()}
        start, goal = re.fullmatch(r"how do you go from the (\w+) to the (\w+)", question).groups()
        path = [start]
        for direction in story.answer:
            (x, y), (dx, dy) = cells[path[-1]], STEPS[direction]
            path.append(at[x + dx, y + dy])
        assert path[-1] == goal
        assert len(set(path)) == len(path)
        told = {frozenset((name, other)) for name, _, other in links}
        assert all(frozenset(pair) in told for pair in pairwise(path))
        assert len(path) > min(n_sentences, 2)


def shares(task, n_sentences=4):
    random = Random(1)
    answers = [TASKS[task].write(n_sentences, CAST, random).answer for _ in range(2000)]
    return {each: answers.count(each) / len(answers) for each in set(answers)}


def test_answers_are_not_given_away_by_their_frequency():
    for task in ("yesno", "position"):
        assert abs(shares(task)["yes",] - 0.5) < 0.05
    assert max(shares("where").values()) < 0.2
    assert max(shares("count").values()) < 0.6
    assert len(shares("list")) > 6
    assert shares("count", 12)["three",] > 0.01


@pytest.mark.parametrize("task", [*TASKS, MIXED])
class TestStories:
    def world(self, task, num_envs=256, **kwargs):
        return StoriesWorld(num_envs, **dict(task=task, n_sentences=3, n_stories=400) | kwargs)

    def test_layout_of_an_episode(self, task):
        world = self.world(task)
        observations, _ = world.reset(seed=1)
        stories = [world.pool[index] for index in world.text.tolist()]
        seen, ended = [observations], []
        for _ in range(world.longest):
            observations, _, terminated, _, _ = world.step(torch.zeros(256, dtype=torch.long))
            seen.append(observations)
            ended.append(terminated)
        shown, ended = torch.stack(seen, 1).tolist(), torch.stack(ended, 1)
        for row, story in enumerate(stories):
            steps = len(story.words) + len(story.answer)
            assert [(*world.words, "?")[code] for code in shown[row][:steps]] == [*story.words, *["?"] * len(story.answer)]
            assert ended[row].nonzero()[0].item() == steps - 1
        assert len(set(stories)) > 100

    def test_perfect_memoryless_and_random_play(self, task):
        world = self.world(task, num_envs=2048)
        random, memoryless, perfect = world.returns()
        np.testing.assert_allclose(first_returns(world, answering(world)), perfect, atol=1e-6)
        found = first_returns(world, random_actions(world))
        assert abs(found.mean() - random) < 4 * found.std() / 45
        guesses = [
            first_returns(world, lambda _, word=word: torch.full((2048,), word)).mean()
            for word in range(len(world.answer_words))
        ]
        assert abs(max(guesses) - memoryless) < 4 * 0.5 / 45

    def test_another_seed_has_other_stories(self, task):
        pools = [set(self.world(task, pool_seed=seed, n_sentences=5).pool) for seed in (0, 0, 1)]
        assert pools[0] == pools[1]
        assert len(pools[0] & pools[2]) < 20


def test_a_player_who_reads_needs_nothing_else():
    world = StoriesWorld(32, n_stories=100, task="who")
    texts = [[] for _ in range(32)]

    def act(observations):
        actions = []
        for text, code in zip(texts, observations.tolist(), strict=True):
            if code == len(world.words):
                actions.append(world.answer_words.index(*answer("who", text)))
                text.clear()
            else:
                text.append(world.words[code])
                actions.append(0)
        return torch.tensor(actions)

    assert (play(world, 64, act, 150) == 1).all()


def test_each_episode_draws_its_number_of_sentences():
    world = StoriesWorld(300, n_sentences=[1, 4], n_stories=200)

    def numbers():
        return {world.pool[index].words.count(".") for index in world.text.tolist()}

    world.reset(seed=0)
    assert numbers() == {1, 2, 3, 4}
    world.n_sentences = (2, 3)
    world.reset()
    assert numbers() == {2, 3}
    assert world.returns().perfect == 1


def test_mixed_has_every_task_in_equal_parts():
    world = StoriesWorld(1, task=MIXED, n_stories=800)
    questions = [" ".join(story.words[-12:]) for story in world.pool]
    assert sum("how many" in question for question in questions) == 100
    assert sum("how do you go" in question for question in questions) == 100
    assert {"yes", "north", "mary", "garden", "milk", "nothing", "none"} <= set(world.answer_words)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        (dict(task="were"), "unknown task 'were'; did you mean 'where'"),
        (dict(n_sentences=0), "n_sentences must be a whole number of at least 1, got 0"),
        (dict(task="object", n_sentences=[1, 3]), "n_sentences must be at least 2 if task is 'object', got (1, 3)"),
        (dict(task="position", n_sentences=12), "n_sentences must be at most 11 if task is 'position'"),
        (dict(task="path", n_sentences=6), "n_sentences must be at most 5 if task is 'path' and n_places is 6, got 6"),
        (dict(n_people=9), "n_people must be at most 8, got 9"),
        (dict(n_places=1), "n_places must be a whole number of at least 2, got 1"),
        (dict(n_objects=7), "n_objects must be at most 6, got 7"),
        (dict(n_stories=2, n_sentences=[1, 3]), "n_stories must be at least 3, one for each number of sentences and task"),
        (dict(pool_seed=-1), "pool_seed must be a whole number of at least 0, got -1"),
        (dict(split="valid"), "unknown split 'valid'"),
    ],
)
def test_mistakes(keywords, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        StoriesWorld(**keywords)


QA1 = """1 Mary moved to the bathroom.
2 John went to the hallway.
3 Where is Mary? \tbathroom\t1
4 Daniel went back to the hallway.
5 Where is Daniel? \thallway\t4
1 Sandra moved to the garden.
2 Where is Sandra? \tgarden\t1
"""
QA19 = """1 The office is north of the kitchen.
2 The garden is south of the kitchen.
3 How do you go from the garden to the office?\tn,n\t2 1
"""


@pytest.fixture
def babi(tmp_path):
    for task, text in (("qa1_single-supporting-fact", QA1), ("qa19_path-finding", QA19)):
        for split in ("train", "test"):
            (tmp_path / f"{task}_{split}.txt").write_text(text if split == "train" else text.replace("hallway", "attic"))
    return tmp_path


class TestBabi:
    def test_questions_are_episodes(self, babi):
        world = StoriesWorld(64, data=str(babi), task="qa1")
        assert [" ".join(story.words) for story in world.pool] == [
            "mary moved to the bathroom . john went to the hallway . where is mary",
            "mary moved to the bathroom . john went to the hallway . daniel went back to the hallway . where is daniel",
            "sandra moved to the garden . where is sandra",
        ]
        assert [story.answer for story in world.pool] == [("bathroom",), ("hallway",), ("garden",)]
        assert world.answer_words == ("attic", "bathroom", "garden", "hallway")  # of both splits
        np.testing.assert_allclose(first_returns(world, answering(world)), 1)
        assert world.returns() == pytest.approx((1 / 4, 1 / 3, 1))

    def test_splits_have_the_same_words(self, babi):
        train, test = (StoriesWorld(1, data=str(babi), task=MIXED, split=split) for split in ("train", "test"))
        assert (train.words, train.answer_words) == (test.words, test.answer_words)
        assert train.pool != test.pool
        assert train.pool[-1].answer == ("n", "n")
        assert len(train.pool) == 4

    @pytest.mark.parametrize(
        ("keywords", "message"),
        [
            (dict(), "unknown task 'where'; valid: mixed, qa1, qa19"),
            (dict(task="qa2"), "unknown task 'qa2'; did you mean 'qa1'"),
            (dict(task="qa1", n_people=3), "data must be alone: it decides the stories, got 'n_people'"),
        ],
    )
    def test_mistakes(self, babi, keywords, message):
        with pytest.raises(UsageError, match=re.escape(message)):
            StoriesWorld(data=str(babi), **keywords)

    def test_files_that_are_not_there(self, babi, tmp_path_factory):
        with pytest.raises(UsageError, match="data must be a folder with bAbI's files, such as qa1_"):
            StoriesWorld(data=str(tmp_path_factory.mktemp("empty")))
        (babi / "qa1_single-supporting-fact_test.txt").unlink()
        with pytest.raises(UsageError, match=re.escape("data must be a folder with one file qa1_*_test.txt, got []")):
            StoriesWorld(data=str(babi), task="qa1")
        with pytest.raises(UsageError, match="data must be a folder, got 3"):
            StoriesWorld(data=3)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("Mary moved.\n", r"line 1 of .*qa1.* must be '<number> <sentence>' or .*, got 'Mary moved\.'"),
            ("1 Mary moved.\n", r"must contain questions, got '1 lines'"),
            (b"1 \xff\n", "cannot be read"),
        ],
    )
    def test_files_of_another_format(self, babi, text, message):
        content = text if isinstance(text, bytes) else text.encode()
        (babi / "qa1_single-supporting-fact_train.txt").write_bytes(content)
        with pytest.raises(UsageError, match=message):
            StoriesWorld(data=str(babi), task="qa1")


def test_a_picture_shows_the_story_and_the_answers():
    def pixels(colour):
        return int((world._picture(0) == np.array(colour)).all(-1).sum())

    world = StoriesWorld(1, n_stories=10, n_sentences=12, render_mode="rgb_array")
    world.reset(seed=0)
    words = world.pool[world.text].words
    assert pixels(drawing.SEEN) == 0
    for _ in words:
        assert pixels(drawing.DARK) > 0
        world._advance(torch.tensor([0]))
    assert pixels(drawing.SEEN) > 0
    assert pixels(drawing.RIGHT) == pixels(drawing.WRONG) == 0
    world._advance(world.answers().actions)
    assert pixels(drawing.RIGHT) > 0
    assert world._picture(0).shape == (180, 400, 3)
