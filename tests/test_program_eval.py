"""Program evaluation: that results are Python's own, the layout of episodes, and perfect, memoryless and random play."""

import re
import time
from random import Random

import numpy as np
import pytest
import torch
from playing import play, random_actions

from rmc_rl.envs.parts import drawing
from rmc_rl.envs.parts.programs import CHARACTERS, MEMORISATION, PROGRAMS, TASKS, write_program
from rmc_rl.envs.worlds.program_eval import ProgramEvalWorld
from rmc_rl.errors import UsageError

MARKER = len(CHARACTERS)
tasks = pytest.mark.parametrize("task", TASKS)


def evaluate(text):
    """The value of a program by Python's eval and exec, innermost brackets first."""
    while "(" in text:
        text = re.sub(r"\(([^()]*)\)", lambda inner: str(evaluate(inner.group(1))), text, count=1)
    loop = re.fullmatch(r"x=(-?\d+)for\[(\d)\]x\+=(-?\d+)", text)
    if loop:
        names = {}
        exec(f"x={loop[1]}\nfor _ in range({loop[2]}): x+={loop[3]}", names)
        return names["x"]
    return eval(text.replace("if", " if ").replace("else", " else "))


@pytest.mark.parametrize("task", PROGRAMS)
@pytest.mark.parametrize(("length", "nesting"), [(1, 1), (2, 2), (5, 2), (6, 3)])
def test_results_are_those_of_python(task, length, nesting):
    random = Random(0)
    for _ in range(300):
        text, result = write_program(task, length, nesting, random)
        assert result == str(evaluate(text) % 10 ** (length + 1)), text
        assert set(text) <= set(CHARACTERS)
        assert text.count("(") == nesting - 1


def test_operations_of_each_task():
    def operations(task):
        random = Random(0)
        texts = "".join(write_program(task, 2, 1, random)[0] for _ in range(100))
        return {sign for sign in ("+", "-", "*", "if", "for", "<", ">") if sign in texts.replace("+=", "")}

    assert operations("addition") == {"+"}
    assert operations("control") == {"if", "for", "<", ">"}
    assert operations("full") == {"+", "-", "*", "if", "for", "<", ">"}


def test_what_is_memorised():
    for task, expected in (("copy", lambda t: t), ("reverse", lambda t: t[::-1]), ("double", lambda t: t * 2)):
        text, result = write_program(task, 5, 1, Random(3))
        assert len(set(text)) > 1
        assert len(text) == 5
        assert result == expected(text)


@tasks
class TestProgramEval:
    def world(self, task, num_envs=128, **kwargs):
        return ProgramEvalWorld(num_envs, **dict(task=task, length=3, nesting=1, n_programs=500) | kwargs)

    def test_layout_of_an_episode(self, task):
        world = self.world(task)
        observations, _ = world.reset(seed=1)
        programs = [world.pool[index] for index in world.text.tolist()]
        seen, ended = [observations], []
        for _ in range(world.longest):
            observations, _, terminated, _, _ = world.step(torch.zeros(128, dtype=torch.long))
            seen.append(observations)
            ended.append(terminated)
        shown, ended = torch.stack(seen, 1).tolist(), torch.stack(ended, 1)
        for row, (text, result) in enumerate(programs):
            steps = len(text) + len(result)
            assert "".join((CHARACTERS + "?")[code] for code in shown[row][:steps]) == text + "?" * len(result)
            assert ended[row].nonzero()[0].item() == steps - 1
        assert len(set(programs)) > 50

    def test_perfect_play_gets_one(self, task):
        world = self.world(task)
        results = dict(world.pool)
        memory = [("", 0)] * 128  # text seen, markers seen

        def act(observations):
            actions = []
            for row, code in enumerate(observations.tolist()):
                text, markers = memory[row]
                if code == MARKER:
                    actions.append(int(results[text][markers]))
                    memory[row] = text, markers + 1
                else:
                    memory[row] = (CHARACTERS[code] if markers else text + CHARACTERS[code]), 0
                    actions.append(0)
            return torch.tensor(actions)

        np.testing.assert_allclose(play(world, 256, act, 3 * world.longest), 1, atol=1e-6)

    def test_random_and_memoryless_play(self, task):
        world = self.world(task, num_envs=1024)
        n_steps = 4 * world.longest
        bound = 4 * 0.5 / np.sqrt(4096)
        assert abs(play(world, 4096, random_actions(world), n_steps).mean() - 0.1) < bound
        # all steps that count look alike, so a memoryless player always acts out one digit
        returns = [play(world, 4096, lambda _, d=digit: torch.full((1024,), d), n_steps).mean() for digit in range(10)]
        assert abs(max(returns) - world.returns().memoryless) < bound

    def test_another_seed_has_other_programs(self, task):
        pools = [set(self.world(task, length=6, pool_seed=seed).pool) for seed in (0, 0, 1)]
        assert pools[0] == pools[1]
        assert len(pools[0] & pools[2]) < 10

    def test_mix(self, task):
        nesting = 1 if task in MEMORISATION else 3
        pool = self.world(task, length=4, nesting=nesting, mix=True).pool
        lengths = {max(map(len, re.findall(r"(?<!\[)\d+", text))) for text, _ in pool}
        assert lengths == {1, 2, 3, 4}
        assert {text.count("(") + 1 for text, _ in pool} == set(range(1, nesting + 1))


def test_the_ceiling_of_the_default():
    assert abs(ProgramEvalWorld().returns().memoryless - 0.27) < 0.01


def test_the_pool_is_written_quickly():
    start = time.perf_counter()
    ProgramEvalWorld(task="full", length=6, nesting=3)
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        (dict(task="contrl"), "unknown task 'contrl'; did you mean 'control'"),
        (dict(length=0), "length must be a whole number of at least 1, got 0"),
        (dict(nesting=0), "nesting must be a whole number of at least 1, got 0"),
        (dict(task="copy", nesting=2), "nesting must be 1 if task is 'copy', got 2"),
        (dict(length=5000), "length must be at most 1000, got 5000"),
        (dict(nesting=101), "nesting must be at most 100, got 101"),
        (dict(mix=1), "mix must be true or false, got 1"),
        (dict(n_programs=0), "n_programs must be a whole number of at least 1, got 0"),
        (dict(pool_seed=-1), "pool_seed must be a whole number of at least 0, got -1"),
    ],
)
def test_mistakes(keywords, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        ProgramEvalWorld(**keywords)


def test_a_picture_shows_program_and_answers():
    def pixels(colour):
        return int((world._picture(0) == np.array(colour)).all(-1).sum())

    world = ProgramEvalWorld(1, length=3, n_programs=10, render_mode="rgb_array")
    world.reset(seed=0)
    text, result = world.pool[world.text]
    first = pixels(drawing.SEEN)
    assert first > 0
    for _ in text:
        world.step(torch.tensor([0]))
    assert pixels(drawing.SEEN) > first
    assert pixels(drawing.RIGHT) == pixels(drawing.WRONG) == 0
    world.step(torch.tensor([int(result[0])]))
    assert pixels(drawing.RIGHT) > 0
    assert pixels(drawing.WRONG) == 0
    world._advance(torch.tensor([(int(result[1]) + 1) % 10]))
    assert pixels(drawing.WRONG) > 0
