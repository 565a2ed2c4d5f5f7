"""Keywords that rise as the return allows, ranges of keywords, and warnings about memory and entropy."""

import inspect
import warnings
from collections import deque
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from stable_baselines3.common.logger import Logger
from tiny_runs import curve

from rmc_rl import MlpMemoryPolicy, RecurrentPPO, evaluate, load_policy, make_vec, train
from rmc_rl.command_line.advice import EntropyWarning, memory_demand, warn_about_memory
from rmc_rl.command_line.curriculum import Curriculum, read_curriculum
from rmc_rl.envs import WORLDS
from rmc_rl.envs.base import load_world
from rmc_rl.errors import UsageError

RUN = Path("runs/rmc_rl-Copy-v0/lstm")
TINY = ["core=lstm", "core.width=4", "device=cpu", "num_threads=1", "n_envs=16", "algo.n_steps=11", "algo.batch_size=44"]
TINY += ["algo.n_epochs=1", "env_kwargs.n_symbols=2", "env_kwargs.length=2"]
CONSTANT = ["algo.learning_rate_schedule=constant", "algo.ent_coef_schedule=constant"]


@pytest.mark.parametrize("draw", ["present", "range", "combined"])
def test_a_run_through_a_curriculum_is_resumed_exactly_and_evaluated_at_the_end(call, draw):
    keys = [*TINY, *CONSTANT, "curriculum.delay=[1,4]", "curriculum_return=0.2", f"curriculum_draw={draw}"]
    status, out, err = call(train, *keys, "total_timesteps=2600", "name=whole")
    assert status == 0, err
    rows = curve(RUN / "whole")
    delays = [float(row["curriculum/delay"]) for row in rows]
    assert delays == sorted(delays)
    assert set(delays) == {1, 2, 3, 4}
    assert "curriculum: delay 2 from " in out
    assert {float(row["curriculum/threshold"]) for row in rows} == {0.2}
    # stopped between two values
    stop = (delays.index(2) + 1) * 176 + 20
    assert call(train, *keys, f"total_timesteps={stop}", "name=resumed")[0] == 0
    status, _, err = call(train, f"resume={RUN / 'resumed'}", "total_timesteps=2600")
    assert status == 0, err
    assert curve(RUN / "resumed") == rows
    weights = [load_policy(RUN / name).state_dict() for name in ("whole", "resumed")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert OmegaConf.load(RUN / "whole" / "config.yaml").env_kwargs.delay == 4
    _, out, _ = call(evaluate, f"run={RUN / 'whole'}", "episodes=4")
    assert "length: mean 8.000" in out  # 2 * 2 + 4


def test_the_rule():
    env = make_vec("rmc_rl/Copy-v0", 2, seed=0, env_kwargs=dict(n_symbols=2, length=2, delay=[1, 9]))
    model = RecurrentPPO(MlpMemoryPolicy, env, n_steps=4, device="cpu", policy_kwargs=dict(core="memoryless"))
    curriculum = Curriculum({"delay": [1, 9, 5]}, model)
    curriculum.init_callback(model)
    assert env.get_attr("delay") == [1, 1]
    assert curriculum._threshold() == pytest.approx(0.5 + 0.8 * 0.5)
    model.ep_info_buffer = deque([{"r": 0.91}] * 100, maxlen=100)
    curriculum.locals["dones"] = np.array([True, True])
    for episodes in (50, 1):  # of each copy; the first of each does not count
        for _ in range(episodes):
            curriculum._on_step()
        curriculum._on_rollout_start()
        assert (env.get_attr("delay")[0], len(model.ep_info_buffer)) == ((1, 100) if episodes == 50 else (6, 0))
    model.ep_info_buffer.extend([{"r": 0.89}] * 100)
    for _ in range(100):
        curriculum._on_step()
    curriculum._on_rollout_start()
    assert env.get_attr("delay")[0] == 6  # the return was too low
    model.ep_info_buffer.extend([{"r": 0.91}] * 100)
    curriculum._on_rollout_start()
    assert env.get_attr("delay")[0] == 9  # not 11
    assert curriculum.is_over


@pytest.mark.parametrize(("stage", "first", "second"), [([1, 9, 5], (1, 1), (1, 6)), ([9, 1, 5], (9, 9), (4, 9))])
def test_draws_from_all_values_so_far(stage, first, second):
    env = make_vec("rmc_rl/Copy-v0", 400, seed=0, env_kwargs=dict(n_symbols=2, length=2, delay=[1, 9]))
    model = RecurrentPPO(MlpMemoryPolicy, env, n_steps=4, device="cpu", policy_kwargs=dict(core="memoryless"))
    curriculum = Curriculum({"delay": stage}, model, draw="range")
    curriculum.init_callback(model)
    assert env.get_attr("delay")[0] == first
    model.ep_info_buffer = deque([{"r": 1.0}] * 100, maxlen=100)
    curriculum.locals["dones"] = np.ones(400, dtype=bool)
    for _ in range(2):
        curriculum._on_step()
    curriculum._on_rollout_start()
    assert env.get_attr("delay")[0] == second
    env.reset()
    waits = {int(recall) - 2 for recall in env.get_attr("recall_steps")}
    assert waits == set(range(second[0], second[1] + 1))
    with pytest.raises(UsageError, match="unknown curriculum_draw 'all'"):
        Curriculum({"delay": stage}, model, draw="all")


def test_half_of_the_episodes_have_all_present_values_and_the_others_draw():
    env = make_vec("rmc_rl/Copy-v0", 4000, seed=0, env_kwargs=dict(n_symbols=2, length=[1, 2], delay=[1, 10]))
    model = RecurrentPPO(MlpMemoryPolicy, env, n_steps=4, device="cpu", policy_kwargs=dict(core="memoryless"))
    curriculum = Curriculum({"length": [1, 2], "delay": [1, 10, 9]}, model, draw="combined")
    curriculum.init_callback(model)
    assert env.get_attr("often")[0] == {"length": 1, "delay": 1}
    curriculum.index = 1
    curriculum._set()
    env.reset()
    world = curriculum.world
    lengths, delays = world.lengths, world.recall_steps - world.lengths
    hardest = (lengths == 2) & (delays == 10)
    assert hardest.float().mean().item() == pytest.approx(0.5 + 0.5 * 0.5 * 0.1, abs=0.03)
    assert (lengths == 1).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert set(delays[~hardest].tolist()) == set(range(1, 11))
    assert (world.length, world.delay) == ((1, 2), (1, 10))  # as before the draw
    for _ in range(30):  # all copies have begun a new episode
        env.step(np.zeros(4000, dtype=np.int64))
    assert (world.recall_steps - world.lengths == 10).float().mean().item() > 0.5


def test_the_returns_of_a_world_count_what_half_of_the_episodes_have():
    world = load_world(WORLDS["rmc_rl/TMaze-v0"])(2, length=[2, 8])
    drawn = world.present_returns()
    assert drawn == world.returns()
    world.often = {"length": 8}
    hardest = load_world(WORLDS["rmc_rl/TMaze-v0"])(2, length=8).returns()
    assert world.present_returns().random == pytest.approx((drawn.random + hardest.random) / 2)
    assert world.length == (2, 8)
    state = world.reset(seed=0) and world.state_dict()
    other = load_world(WORLDS["rmc_rl/TMaze-v0"])(2, length=[2, 8])
    other.load_state_dict(state)
    assert other.often == {"length": 8}
    del state["often"]  # as in checkpoints of before
    other.load_state_dict(state)
    assert other.often == {}


def test_values():
    def values(curriculum):
        (stage,) = read_curriculum({"key": curriculum}).values()
        return [stage.value(index) for index in range(stage.length + 1)]

    assert values([1, 4]) == [1, 2, 3, 4]
    assert values([5, 50]) == [5, 9, 13, 17, 21, 25, 29, 33, 37, 41, 45, 49, 50]
    assert values([5, 50, 20]) == [5, 25, 45, 50]
    assert values([4, 1]) == [4, 3, 2, 1]
    assert values([0.5, 1.5]) == pytest.approx(np.linspace(0.5, 1.5, 11))


MISTAKES = [
    ("curriculum.dely=[1,2]", "unknown keyword in curriculum for rmc_rl/Copy-v0 'dely'; did you mean 'delay'?"),
    ("curriculum.delay=5", "curriculum.delay must be [from, to] or [from, to, step], as in curriculum.delay=[5,50], got 5"),
    ("curriculum.delay=[5,5]", "curriculum.delay must have two different numbers, got [5, 5]"),
    ("curriculum.delay=[5,a]", "each number of curriculum.delay must be a finite number, got 'a'"),
    ("curriculum.delay=[1,5,9]", "the step of curriculum.delay must not be larger than its way"),
    ("curriculum.delay=[1,5] curriculum_draw=rang", "unknown curriculum_draw 'rang'; did you mean 'range'?"),
    ("curriculum.delay=[0,5]", "delay must be a whole number or a range [low, high] of whole numbers of at least 1"),
    ("curriculum.n_symbols=[2,3]", "unknown keyword in curriculum for rmc_rl/Copy-v0 'n_symbols'"),
    ("env_kwargs.delay=3 curriculum.delay=[1,5]", "delay must be in curriculum or in env_kwargs, not in both, got 3"),
    ("env=CartPole-v1 curriculum.x=[1,2]", "curriculum needs a world of rmc_rl/*, whose keywords can change"),
    ("env=rmc_rl/BallTracking-v0 curriculum.hold_steps=[1,2]", "curriculum_return must be a mean return, because the world"),
    ("env_kwargs.n_symbols=[2,3]", "n_symbols must have one value, because it fixes the shape of the observations"),
    ("env=rmc_rl/NthFarthest-v0 env_kwargs.dim=[2,3]", "NthFarthestWorld has no keyword that takes a range"),
    ("partial.hide=[0]", "partial.hide needs observations that are a vector or a Dict, got Discrete(10)"),
    ("partial.delai=1", "unknown key of partial 'delai'; did you mean 'delay'?"),
    ("partial.noise=a", "partial.noise must be a finite number"),
]


@pytest.mark.parametrize(("keys", "message"), MISTAKES)
def test_mistakes_get_one_line(call, keys, message):
    status, _, err = call(train, "device=cpu", "total_timesteps=1", *keys.split())
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith("error: ")
    assert message in err
    assert not Path("runs").exists()


def test_evaluation_takes_what_disturbs_from_the_run_and_from_the_command_line(call):
    keys = ["env=CartPole-v1", "core=lstm", "core.width=4", "device=cpu", "n_envs=2", "algo.n_steps=8", "name=first"]
    status, _, err = call(train, *keys, "partial.hide=[1,3]", "partial.delay=1", "total_timesteps=16", "num_threads=1")
    assert status == 0, err
    run = "run=runs/CartPole-v1/lstm/first"
    _, out, _ = call(evaluate, run, "episodes=2")
    assert "CartPole-v1 with {'partial.hide': [1, 3], 'partial.delay': 1}: 2 episodes" in out
    _, out, _ = call(evaluate, run, "episodes=2", "partial.delay=0", "partial.noise=0.5")
    assert "CartPole-v1 with {'partial.hide': [1, 3], 'partial.noise': 0.5}: 2 episodes" in out
    status, _, err = call(evaluate, run, "episodes=2", "partial.hide=[1]")
    assert (status, "env, env_kwargs and partial must leave the observation_space as it was in training" in err) == (2, True)


def test_a_range_is_drawn_within_its_bounds_in_every_world():
    for world_id, path in WORLDS.items():
        world = load_world(path)
        assert all(name in inspect.signature(world).parameters for name in world.ranges), world_id
    world = load_world(WORLDS["rmc_rl/ProgramEval-v0"])(400, length=[1, 3], nesting=[1, 2], n_programs=600)
    world.reset(seed=0)
    sizes = {len(world.pool[index][0]) for index in world.text.tolist()}
    world.length, world.nesting = 1, 1
    world.reset()
    short = [world.pool[index][0] for index in world.text.tolist()]
    assert len(sizes) >= 5
    assert {sum(character.isdigit() for character in text) for text in short} == {2}
    picks = load_world(WORLDS["rmc_rl/ObjectPick-v0"])(300, n_distractors=[1, 3], max_steps=[5, 9])
    picks.reset(seed=0)
    assert set((picks.cells > 1).sum((1, 2)).tolist()) == {2, 3, 4}
    assert set(picks.limit.tolist()) == {5, 6, 7, 8, 9}
    rooms = load_world(WORLDS["rmc_rl/BoxWorld-v0"])(300, max_length=[1, 2], max_distractors=[0, 1])
    rooms.reset(seed=0)
    boxes = (rooms.cells > 0).sum(1)
    assert 1.3 < boxes.float().mean() / 2 < 2.5


@pytest.mark.parametrize("world_id", [name for name, path in WORLDS.items() if load_world(path).ranges])
def test_every_world_draws_half_of_its_episodes_with_given_numbers(world_id):
    world = load_world(WORLDS[world_id])(6)
    world.reset(seed=0)
    shapes = {name: (part.shape, part.dtype) for name, part in world.state_dict()["copies"].items()}
    world.often = {name: getattr(world, name) for name in world.ranges if not isinstance(getattr(world, name), tuple)}
    world.reset(seed=0)
    assert {name: (part.shape, part.dtype) for name, part in world.state_dict()["copies"].items()} == shapes
    world.step(np.stack([world.single_action_space.sample() for _ in range(6)]))


def agent(**arguments):
    env = make_vec("rmc_rl/Copy-v0", 2, seed=0, env_kwargs=dict(length=3, delay=7))
    return RecurrentPPO(MlpMemoryPolicy, env, device="cpu", policy_kwargs=dict(core="lstm"), **arguments)


@pytest.mark.parametrize(
    ("arguments", "larger"),
    [
        (dict(n_steps=10, batch_size=20), "gradients reach back 10 steps only; set algo.n_steps=11 or more"),
        (dict(n_steps=32, batch_size=64, sequence_length=8), "8 steps only; set algo.sequence_length=11 or more"),
        (dict(n_steps=32, batch_size=8), "8 steps only; set algo.batch_size=11 or more"),
    ],
)
def test_sequences_shorter_than_the_memory_demand(arguments, larger):
    model = agent(**arguments)
    with pytest.warns(UserWarning, match=f"this world asks to remember over 10 steps, but .*{larger}"):
        warn_about_memory(model, memory_demand(model))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_about_memory(agent(n_steps=11, batch_size=22), 10)
        env = make_vec("CartPole-v1", 2)
        model = RecurrentPPO(MlpMemoryPolicy, env, n_steps=4, batch_size=8, policy_kwargs=dict(core="lstm"))
        assert memory_demand(model) is None
        warn_about_memory(model, None)


@pytest.mark.parametrize(("entropy", "mean", "warns"), [(0.01, 0.125, True), (1.0, 0.125, False), (0.01, 0.5, False)])
def test_a_deterministic_policy_at_the_return_of_chance(entropy, mean, warns):
    model, callback = agent(n_steps=16, batch_size=32), EntropyWarning()
    model.set_logger(Logger(None, []))
    model.ep_info_buffer = deque([{"r": mean}] * 100, maxlen=100)
    callback.init_callback(model)
    callback.on_training_start({}, {})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(12):
            model.logger.record("train/entropy_loss", -entropy)
            callback.on_rollout_end()
    assert [str(each.message).startswith("the policy has become deterministic") for each in caught] == [True] * warns


def test_a_curriculum_on_an_unknown_return():
    env = make_vec("rmc_rl/BallTracking-v0", 2, env_kwargs=dict(hold_steps=[1, 3]))
    model = RecurrentPPO(MlpMemoryPolicy, env, n_steps=4, device="cpu", policy_kwargs=dict(core="memoryless"))
    with pytest.raises(UsageError, match="curriculum_return must be a mean return"):
        Curriculum({"hold_steps": [1, 3]}, model)
    assert Curriculum({"hold_steps": [1, 3]}, model, 0.5)._threshold() == 0.5
