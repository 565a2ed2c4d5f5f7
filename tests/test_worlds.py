"""What every world of this package keeps, and what each asks of memory."""

import pickle
import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import vector
from playing import answering, batched, first_returns, random_actions
from stable_baselines3.common.env_checker import check_env as check_env_sb3

from rmc_rl import make_vec
from rmc_rl.envs import WORLDS, BatchedWorld
from rmc_rl.envs.worlds.copy import CopyWorld
from rmc_rl.errors import UsageError

# keywords of a small and quick version of each world
SMALL = {
    "rmc_rl/Autoencode-v0": dict(n_cards=[3, 6]),
    "rmc_rl/BallTracking-v0": dict(hold_steps=2, free_steps=4, dark_steps=3),
    "rmc_rl/BouncingBalls-v0": dict(dark_steps=3, n_balls=[2, 3], curtain=True),
    "rmc_rl/BoxWorld-v0": dict(view_size=3, obs="pixels", max_length=1, n_colours=4, max_steps=20),
    "rmc_rl/CartPolePositions-v0": dict(max_steps=20, half_length=[0.4, 0.6]),
    "rmc_rl/Concentration-v0": dict(n_cards=8, n_kinds=4),
    "rmc_rl/Copy-v0": dict(n_symbols=4, length=3, delay=5),
    "rmc_rl/EndlessTMaze-v0": dict(length=[1, 3], n_corridors=2),
    "rmc_rl/MemoryRoom-v0": dict(random_length=True, size=9, max_steps=30),
    "rmc_rl/MiniPacman-v0": dict(max_steps=20, mode="hunt", n_mazes=2),
    "rmc_rl/NthFarthest-v0": dict(n_vectors=3, dim=1),
    "rmc_rl/ObjectPick-v0": dict(n_distractors=1, size=4, max_steps=20),
    "rmc_rl/PendulumAngle-v0": dict(max_steps=[10, 12], gravity=9.8),
    "rmc_rl/ProgramEval-v0": dict(nesting=2, task="full", n_programs=100),
    "rmc_rl/RepeatPrevious-v0": dict(k=2, n_cards=8),
    "rmc_rl/SequentialDigits-v0": dict(size=4, pixels_per_step=4),
    "rmc_rl/Stories-v0": dict(task="list", n_sentences=[1, 3], n_stories=60),
    "rmc_rl/TMaze-v0": dict(length=3),
}
worlds = pytest.mark.parametrize("world_id", WORLDS)


@worlds
@pytest.mark.parametrize("size", ["default", "small"])
def test_checkers_are_silent(world_id, size):
    kwargs = SMALL[world_id] if size == "small" else {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make(world_id, **kwargs).unwrapped, skip_render_check=False)
        check_env_sb3(gymnasium.make(world_id, **kwargs).unwrapped)


@worlds
def test_single_and_batched_are_the_same_world(world_id):
    single = gymnasium.make(world_id, **SMALL[world_id])
    batch = batched(world_id, num_envs=1, **SMALL[world_id])
    observation, _ = single.reset(seed=3)
    observations, _ = batch.reset(seed=3)
    assert batch.single_observation_space == single.observation_space
    assert batch.single_action_space == single.action_space
    single.action_space.seed(0)
    for _ in range(200):
        np.testing.assert_array_equal(observation, observations[0].numpy())
        action = single.action_space.sample()
        observation, reward, terminated, truncated, _ = single.step(action)
        observations, rewards, ends, cuts, info = batch.step(np.asarray(action)[None])
        assert (reward, terminated, truncated) == (rewards[0].item(), ends[0].item(), cuts[0].item())
        if terminated or truncated:
            np.testing.assert_array_equal(observation, info["final_obs"][0].numpy())
            observation, _ = single.reset()


@worlds
def test_the_seed_decides_everything(world_id):
    def episode(seed):
        world = batched(world_id, num_envs=5, **SMALL[world_id])
        world.action_space.seed(0)
        observations, _ = world.reset(seed=seed)
        seen = [observations]
        for _ in range(60):
            observations, rewards, *_ = world.step(world.action_space.sample())
            seen += [observations, rewards]
        return torch.cat([tensor.float().flatten() for tensor in seen])

    assert episode(1).equal(episode(1))
    assert not episode(1).equal(episode(2))


@worlds
def test_two_worlds_without_a_seed_differ(world_id):
    first, second = (batched(world_id, num_envs=64) for _ in range(2))
    first.action_space.seed(0)
    seen = [(first.reset()[0], second.reset()[0])]
    for _ in range(30):  # the first of them may be alike: the corners of digits are empty
        actions = first.action_space.sample()
        seen.append((first.step(actions)[0], second.step(actions)[0]))
    assert not all(one.equal(other) for one, other in seen)


@worlds
def test_off_the_cpu_episodes_begin_alike(world_id):
    # there, counting the ended episodes would wait for the device: all copies are drawn, and the ended ones chosen
    worlds = [batched(world_id, num_envs=4, **SMALL[world_id]) for _ in range(2)]
    for world in worlds:
        world.reset(seed=0)
    drawn = worlds[0]._draw(4)
    before = {name: getattr(worlds[0], name).clone() for name in drawn}
    rows = torch.tensor([True, False, False, True])
    worlds[1]._is_on_cpu = False
    for world in worlds:
        world._replace(rows, lambda copies: {name: tensor[copies] for name, tensor in drawn.items()})
        for name, tensor in drawn.items():
            assert getattr(world, name)[rows].equal(tensor[rows])
            assert getattr(world, name)[~rows].equal(before[name][~rows])
    worlds[1].action_space.seed(0)
    for _ in range(100):  # and it steps
        assert worlds[1].step(worlds[1].action_space.sample())[0].shape[0] == 4


@worlds
def test_a_new_batch_is_a_new_tensor(world_id):
    world = batched(world_id, num_envs=3, **SMALL[world_id])
    before, _ = world.reset(seed=0)
    kept = before.clone()
    for _ in range(30):
        world.step(world.action_space.sample())
    assert before.equal(kept)


@worlds
@pytest.mark.parametrize("size", ["default", "small"])
def test_types_and_shapes(world_id, size):
    world = batched(world_id, num_envs=4, **(SMALL[world_id] if size == "small" else {}))
    observations, _ = world.reset(seed=0)
    for _ in range(60):
        assert world.observation_space.contains(observations.numpy())
        observations, rewards, terminated, truncated, _ = world.step(world.action_space.sample())
        assert (rewards.dtype, rewards.shape) == (torch.float32, (4,))
        assert {(ends.dtype, ends.shape) for ends in (terminated, truncated)} == {(torch.bool, (4,))}
        assert world.truncates or not truncated.any()


@worlds
def test_pickles(world_id):
    world = gymnasium.make(world_id, **SMALL[world_id])
    world.reset(seed=1)
    world.step(world.action_space.sample())
    copied = pickle.loads(pickle.dumps(world))
    for _ in range(5):
        action = world.action_space.sample()
        results = [each.step(action) for each in (world, copied)]
        np.testing.assert_equal(*results)
        if results[0][2] or results[0][3]:
            np.testing.assert_equal(world.reset(), copied.reset())


@pytest.mark.parametrize("name", ["BoxWorld", "MemoryRoom", "MiniPacman", "ObjectPick", "TMaze"])
def test_the_time_limit(name):
    kwargs = dict(length=3) if name == "TMaze" else {}
    world = batched(f"rmc_rl/{name}-v0", num_envs=64, max_steps=9, **kwargs)
    world.reset(seed=0)
    idle = torch.zeros(64, dtype=torch.long)
    ends = [world.step(idle)[2:4] for _ in range(9)]
    assert all(not truncated.any() for _, truncated in ends[:-1])
    # no clock is observed, so the limit is not an end that an agent could learn: the value goes on
    assert ends[-1][1].float().mean() > 0.5
    assert sum(terminated.float().mean() for terminated, _ in ends) < 0.5


@worlds
def test_whole_numbers_of_any_type_are_actions(world_id):
    world = batched(world_id, num_envs=2, render_mode="rgb_array", **SMALL[world_id])
    world.reset(seed=0)
    for dtype in (np.int32, np.uint8):
        world.step(world.action_space.sample().astype(dtype))


@worlds
def test_pictures_of_a_world_that_had_none(world_id):
    env = make_vec(world_id, 2, seed=0, env_kwargs=SMALL[world_id])
    env.reset()
    for _ in range(2):
        env.step(np.array([env.action_space.sample() for _ in range(2)]))
        env.set_attr("render_mode", "rgb_array")
        assert env.get_images()[0].ndim == 3


@worlds
def test_what_needs_a_reset_says_so(world_id):
    world = batched(world_id, num_envs=2, render_mode="rgb_array")
    action = world.action_space.sample()
    for call in (lambda: world.step(action), world.answers, world.render):
        with pytest.raises(gymnasium.error.ResetNeeded, match=r"reset\(\) must be called before"):
            call()
    single = gymnasium.make(world_id, **SMALL[world_id]).unwrapped
    single.action_space.seed(0)
    with pytest.raises(gymnasium.error.ResetNeeded):
        single.step(single.action_space.sample())
    single.reset(seed=0)
    over = False
    while not over:
        _, _, terminated, truncated, _ = single.step(single.action_space.sample())
        over = terminated or truncated
    for _ in range(2):
        with pytest.raises(gymnasium.error.ResetNeeded):
            single.step(single.action_space.sample())
    single.reset()
    single.step(single.action_space.sample())


@worlds
@pytest.mark.parametrize("size", ["default", "small"])
def test_answers_and_returns(world_id, size):
    world = batched(world_id, num_envs=64, **(SMALL[world_id] if size == "small" else {}))
    act, (random, memoryless, perfect) = answering(world), world.returns()
    world.reset(seed=0)
    actions, known = world.answers()
    assert actions.shape == world.action_space.shape
    assert world.action_space.contains(actions.numpy().astype(world.action_space.dtype))
    assert (known.shape, known.dtype) == ((64,), torch.bool)
    returns = first_returns(world, act)
    if perfect is not None:
        tolerance = 4 * returns.std() / 8 + 0.02
        assert abs(returns.mean() - perfect) < tolerance
        assert all(lower is None or lower <= perfect for lower in (random, memoryless))
    elif size == "default":
        assert returns.mean() > 4 * random
    if random is not None:
        found = first_returns(world, random_actions(world))
        assert abs(found.mean() - random) < 5 * found.std() / 8 + 0.01
    demand = world.memory_demand()
    assert demand is None or demand >= 1


@worlds
def test_answers_do_not_change_the_world(world_id):
    plain, asked = (batched(world_id, num_envs=4, **SMALL[world_id]) for _ in range(2))
    plain.action_space.seed(0)
    observations = [world.reset(seed=1)[0] for world in (plain, asked)]
    for _ in range(30):
        assert observations[0].equal(observations[1])
        for tensor in asked.answers():
            tensor.zero_()  # the caller owns it
        actions = plain.action_space.sample()
        observations = [world.step(actions)[0] for world in (plain, asked)]


def test_foreign_environments_have_no_answers():
    assert not hasattr(make_vec("CartPole-v1"), "answers")
    with pytest.raises(UsageError, match="AtariVectorEnv does not know the right actions"):
        make_vec("ALE/Pong-v5").answers()


def test_answers_through_sb3():
    env = make_vec("rmc_rl/Copy-v0", 3, seed=0, env_kwargs=SMALL["rmc_rl/Copy-v0"], previous_action_reward=True)
    env.reset()
    total = 0.0
    for _ in range(11):
        actions, known = env.answers()
        assert all(isinstance(part, np.ndarray) for part in (actions, known))
        total += env.step(actions)[1]
    np.testing.assert_allclose(total, 1, rtol=1e-5)


class Unknown(CopyWorld):
    _answers = BatchedWorld._answers


def test_a_world_that_does_not_know_the_answers():
    world = Unknown(1)
    world.reset()
    with pytest.raises(UsageError, match=r"Unknown does not know the right actions: it has no answers\(\)"):
        world.answers()


@worlds
def test_gymnasium_hands_out_numpy(world_id):
    world = gymnasium.make_vec(world_id, num_envs=3, **SMALL[world_id])
    tensors = batched(world_id, num_envs=3, **SMALL[world_id])
    world.action_space.seed(0)
    (observations, info), (expected, _) = world.reset(seed=2), tensors.reset(seed=2)
    assert info == {}
    ends = 0
    for _ in range(40):
        assert world.observation_space.contains(observations)
        np.testing.assert_array_equal(observations, expected)
        actions = world.action_space.sample()
        observations, *rest, info = world.step(actions)
        expected, *tensors_rest, tensors_info = tensors.step(actions)
        assert all(isinstance(part, np.ndarray) for part in (observations, *rest))
        for part, tensor in zip(rest, tensors_rest, strict=True):
            np.testing.assert_array_equal(part, tensor)
        assert bool(info) == bool(rest[1].any() or rest[2].any())
        for index in np.flatnonzero(info.get("_final_obs", [])):
            np.testing.assert_array_equal(info["final_obs"][index], tensors_info["final_obs"][index])
            assert [last is None for last in info["final_obs"]] == (~info["_final_obs"]).tolist()
            ends += 1
    assert ends > 0
    assert world.unwrapped.answers().known.shape == (3,)


@worlds
def test_gymnasiums_vector_wrappers(world_id):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make_vec(world_id, num_envs=3, render_mode="rgb_array", **SMALL[world_id])
        env = vector.RecordEpisodeStatistics(env)
        env = vector.NormalizeReward(vector.ClipReward(env, -5, 5))
        env.reset(seed=0)
        env.action_space.seed(0)
        for _ in range(60):
            observations, rewards, _, _, info = env.step(env.action_space.sample())
            assert np.isfinite(rewards).all()
            for index in np.flatnonzero(info.get("_final_obs", [])):
                assert info["final_obs"][index].shape == observations[index].shape
                assert info["episode"]["l"][index] > 0
        assert len(env.render()) == 3
        listed = vector.DictInfoToList(vector.RecordEpisodeStatistics(gymnasium.make_vec(world_id, 2, **SMALL[world_id])))
        listed.reset(seed=0)
        infos = [info for _ in range(60) for info in listed.step(listed.action_space.sample())[4] if info]
        assert all({"final_obs", "episode"} <= set(info) for info in infos)
        assert infos


@worlds
def test_gymnasiums_observation_wrappers_take_separate_copies(world_id):
    # they refuse every vector environment that resets in the same step
    env = gymnasium.make_vec(world_id, num_envs=2, vectorization_mode="sync", **SMALL[world_id])
    env = vector.NormalizeObservation(vector.FlattenObservation(env))
    env.reset(seed=0)
    for _ in range(30):
        observations, *_ = env.step(env.action_space.sample())
    assert observations.ndim == 2


@worlds
def test_people_can_watch_a_single_world(world_id):
    env = gymnasium.make(world_id, render_mode="rgb_array_list", **SMALL[world_id])
    env.reset(seed=0)
    env.step(env.action_space.sample())
    assert len(env.render()) == 2


def test_array_is_numpy_or_torch():
    with pytest.raises(UsageError, match="unknown array 'tensor'; valid: numpy, torch"):
        gymnasium.make_vec("rmc_rl/Copy-v0", num_envs=1, array="tensor")


@worlds
def test_numpy_integers_are_keywords(world_id):
    keywords = {name: np.int64(value) if type(value) is int else value for name, value in SMALL[world_id].items()}
    worlds = [batched(world_id, num_envs=count, **sizes) for count, sizes in ((np.int64(3), keywords), (3, SMALL[world_id]))]
    assert worlds[0].single_observation_space == worlds[1].single_observation_space
    assert worlds[0].reset(seed=0)[0].equal(worlds[1].reset(seed=0)[0])
    for name in keywords:
        assert not isinstance(getattr(worlds[0], name, None), np.integer)


NUMBERS = [
    ("EndlessTMaze", "penalty"),
    ("TMaze", "penalty"),
    ("BallTracking", "speed"),
    ("BouncingBalls", "speed"),
]


@pytest.mark.parametrize(("name", "keyword"), NUMBERS)
@pytest.mark.parametrize("value", [True, float("nan"), float("inf"), "0.01", None, -1])
def test_numbers_are_finite(name, keyword, value):
    with pytest.raises(UsageError, match=f"{keyword} must be a finite number"):
        make_vec(f"rmc_rl/{name}-v0", env_kwargs={keyword: value})


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("BallTracking", dict(grid=10**6)),
        ("BouncingBalls", dict(grid=10**6)),
        ("BouncingBalls", dict(obs="pixels", size=10**6)),
        ("BoxWorld", dict(size=10**4)),
        ("BoxWorld", dict(view_size=10**6 + 1)),
        ("BoxWorld", dict(n_colours=10**9)),
        ("Autoencode", dict(n_cards=10**10)),
        ("Concentration", dict(n_cards=4 * 10**9)),
        ("Concentration", dict(n_cards=2 * 10**5, n_kinds=10**5)),
        ("Copy", dict(length=10**10)),
        ("Copy", dict(length=[1, 10**10])),
        ("EndlessTMaze", dict(n_corridors=10**10)),
        ("MemoryRoom", dict(size=10**4 + 1)),
        ("MiniPacman", dict(view_size=10**5 + 1)),
        ("MiniPacman", dict(n_mazes=10**6)),
        ("NthFarthest", dict(n_vectors=10**5)),
        ("NthFarthest", dict(dim=10**10)),
        ("ObjectPick", dict(size=10**5)),
        ("ProgramEval", dict(length=1000, nesting=100)),
        ("ProgramEval", dict(n_programs=10**9)),
        ("RepeatPrevious", dict(n_cards=10**10)),
        ("SequentialDigits", dict(size=10**4)),
        ("Stories", dict(n_sentences=10**8)),
        ("Stories", dict(n_stories=10**9)),
    ],
    ids=str,
)
def test_sizes_that_no_memory_holds_are_refused_before_they_are_allocated(name, kwargs):
    with pytest.raises(UsageError, match=r"must need at most 8 GiB of memory, got .*=.* \([\d,]+ GiB\)$"):
        make_vec(f"rmc_rl/{name}-v0", env_kwargs=kwargs)


def test_more_copies_than_memory_holds_are_refused():
    with pytest.raises(UsageError, match=r"num_envs, .* must need at most 8 GiB of memory, got num_envs=1000000000"):
        make_vec("rmc_rl/BouncingBalls-v0", 10**9)


@worlds
def test_mistakes(world_id):
    with pytest.raises(UsageError, match="num_envs must be a whole number of at least 1, got 0"):
        batched(world_id, num_envs=0)
    keyword = next(iter(SMALL[world_id]))
    with pytest.raises(UsageError, match=rf"unknown keyword of .*; did you mean '{keyword}'"):
        gymnasium.make(world_id, **{keyword + "x": 3})
    with pytest.raises(UsageError, match="render_mode must be one of"):
        batched(world_id, num_envs=1, render_mode="rgb").render()


@pytest.mark.cuda
@worlds
def test_on_cuda(world_id):
    world = batched(world_id, num_envs=8, device="cuda")
    observations, _ = world.reset(seed=0)
    for _ in range(200):
        observations, rewards, *_, info = world.step(world.action_space.sample())
    assert {tensor.device.type for tensor in (observations, rewards, info["final_obs"])} == {"cuda"}
