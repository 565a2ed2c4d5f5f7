"""From an id to an SB3 VecEnv: the right route, the right ends of episodes, the right statistics."""

import os
import re
import sys
import types
import warnings

import gymnasium
import numpy as np
import pytest
import torch
from ale_py import AtariVectorEnv
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from sb3_contrib.common.maskable.utils import get_action_masks
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize, VecVideoRecorder

from rmc_rl import make_vec
from rmc_rl.envs import BatchedWorld
from rmc_rl.envs.atari import AtariVecEnv
from rmc_rl.envs.make_vec import env_family
from rmc_rl.envs.previous_action_reward import PreviousActionReward
from rmc_rl.envs.resumable import pickled_copies, unpickled_copies
from rmc_rl.envs.vec_env import SameStepVecEnv
from rmc_rl.envs.worlds.copy import CopyWorld
from rmc_rl.errors import UsageError


@pytest.mark.parametrize(
    ("env_id", "kind", "family"),
    [
        ("ALE/Pong-v5", AtariVecEnv, "atari"),
        ("PongNoFrameskip-v4", AtariVecEnv, "atari"),
        ("rmc_rl/TMaze-v0", SameStepVecEnv, "rmc_rl"),
        ("rmc_rl:rmc_rl/Copy-v0", SameStepVecEnv, "recall"),
        ("CartPole-v1", DummyVecEnv, "gymnasium"),
        ("MiniGrid-MemoryS7-v0", DummyVecEnv, "minigrid"),
        ("MinAtar/Breakout-v1", DummyVecEnv, "minatar"),
    ],
)
def test_routes(env_id, kind, family):
    env = make_vec(env_id, 3, seed=1)
    assert type(env) is kind
    assert env_family(env_id) == family
    assert env.reset().shape[0] == env.num_envs == 3
    env.close()


@pytest.mark.parametrize("env_id", ["CartPole-v1", "MiniGrid-MemoryS7-v0", "MinAtar/Breakout-v1"])
def test_processes_make_what_a_loop_does(env_id):
    env, loop = make_vec(env_id, 2, seed=1, processes=True), make_vec(env_id, 2, seed=1)
    assert isinstance(env, SubprocVecEnv)
    np.testing.assert_array_equal(env.reset(), loop.reset())
    env.close()


@pytest.mark.parametrize("env_id", ["ALE/Pong-v5", "rmc_rl/Copy-v0", "CartPole-v1", "MinAtar/Asterix-v1"])
def test_the_seed_decides_everything(env_id):
    def run(seed):
        env = make_vec(env_id, 2, seed=seed)
        observations = [env.reset()]
        for step in range(40):
            observations.append(env.step(np.array([step % 2, (step + 1) % 2]))[0])
        env.close()
        return np.stack(observations)

    np.testing.assert_array_equal(run(1), run(1))
    assert (run(1) != run(2)).any()


@pytest.mark.parametrize(
    ("env_id", "kwargs", "message"),
    [
        ("ALE/Pon-v5", {}, "unknown env 'ALE/Pon-v5'; did you mean 'ALE/Pong-v5'"),
        ("CartPole", {}, "unknown env 'CartPole'; did you mean 'CartPole-v"),
        ("no_such_module:X-v0", {}, "names a module that cannot be imported"),
        ("Pong-v4", {}, "fixed frame skip, got 'Pong-v4'; did you mean 'ALE/Pong-v5'"),
        ("ALE/Pong-v5", dict(frame_skip=2), "unknown keyword of ALE/Pong-v5 'frame_skip'; did you mean 'frameskip'"),
        ("ALE/Pong-v5", dict(frameskip=0), "frameskip must be a whole number of at least 1, got 0"),
        (
            "ALE/Pong-v5",
            dict(repeat_action_probability=2),
            r"repeat_action_probability must be a finite number at least 0 and at most 1, got 2",
        ),
        ("rmc_rl/Copy-v0", dict(dealy=2), "unknown keyword of rmc_rl/Copy-v0 'dealy'; did you mean 'delay'"),
        ("CartPole-v1", dict(sutton_barto=True), "did you mean 'sutton_barto_reward'"),
        ("FrozenLake-v1", dict(map_name="9x9"), "cannot be made with {'map_name': '9x9'}"),
        ("MiniGrid-MemoryS7-v0", dict(sise=9), "unknown keyword of MiniGrid-MemoryS7-v0 'sise'; did you mean 'size'"),
        ("MiniGrid-MemoryS7-v0", dict(agent_view_sise=9), "did you mean 'agent_view_size'"),
        ("MiniGrid-MemoryS7-v0", dict(agent_view_size=4), "AssertionError: assert agent_view_size % 2 == 1"),
    ],
)
def test_mistakes(env_id, kwargs, message):
    with pytest.raises(UsageError, match=message) as mistake:
        make_vec(env_id, 1, env_kwargs=kwargs)
    assert "\n" not in str(mistake.value)


@pytest.mark.parametrize("env_id", ["ALE/Pong-v5", "rmc_rl/Copy-v0"])
def test_processes_are_for_what_does_not_step_as_one(env_id):
    with pytest.raises(UsageError, match=f"processes must be false for {env_id}, whose copies are stepped together, got True"):
        make_vec(env_id, 2, processes=True)


@pytest.mark.parametrize("env_id", ["ALE/Pong-v5", "rmc_rl/Copy-v0"])
def test_without_a_seed_each_is_another(env_id):
    seeds = []
    for _ in range(6):
        np.random.seed(0)
        env = make_vec(env_id, 2)
        seeds.append(env._seeds[0])
        env.reset()
        env.close()
    assert len(set(seeds)) == 6
    with pytest.raises(UsageError, match="seed must be at most 2147483647 less n_envs, got 2147483647"):
        env.seed(2**31 - 1)


def test_number_of_copies():
    with pytest.raises(UsageError, match="n_envs must be a whole number of at least 1, got 0"):
        make_vec("CartPole-v1", 0)


def test_other_autoreset_modes_are_refused():
    with pytest.raises(UsageError, match="SAME_STEP"):
        SameStepVecEnv(gymnasium.make_vec("CartPole-v1", num_envs=1))


def test_max_episode_steps_is_a_keyword_of_every_gymnasium_id():
    env = make_vec("CartPole-v1", 1, env_kwargs=dict(max_episode_steps=3))
    env.reset()
    ends = [env.step(np.array([step % 2]))[2:] for step in range(3)]
    assert [bool(dones[0]) for dones, _ in ends] == [False, False, True]
    assert ends[-1][1][0]["TimeLimit.truncated"]


class TestBatchedWorld:
    def test_statistics_and_last_observations(self):
        sizes = dict(n_symbols=4, length=3, delay=5)
        env = make_vec("rmc_rl/Copy-v0", 3, seed=0, env_kwargs=sizes)
        env.reset()
        total = np.zeros(3)
        for step in range(11):
            observations, rewards, dones, infos = env.step(np.full(3, 1))
            assert rewards.dtype == np.float32
            total += rewards
            assert dones.tolist() == [step == 10] * 3
            assert all(("episode" in info) == (step == 10) for info in infos)
        for index, info in enumerate(infos):
            assert info["terminal_observation"] == 4  # blank
            assert info["TimeLimit.truncated"] is False
            assert info["episode"]["l"] == 11
            assert info["episode"]["r"] == pytest.approx(total[index])
        assert (observations < 4).all()

    def test_sb3_interface(self):
        env = make_vec("rmc_rl/Copy-v0", 2)
        assert env.env_is_wrapped(Monitor) == [True, True]
        assert env.env_is_wrapped(gymnasium.wrappers.TimeLimit) == [False, False]
        assert env.get_attr("delay", [0]) == [50]
        env.set_attr("render_mode", "rgb_array")
        env.reset()
        assert len(env.get_images()) == 2
        env.set_attr("render_mode", None)
        assert env.get_images() == [None, None]
        assert env.env_method("render", indices=[1]) == [None]

    def test_an_end_is_a_timeout_only_where_nothing_else_ended_it(self):
        class Ends(BatchedWorld):
            def __init__(self):
                super().__init__(4, spaces.Discrete(2), spaces.Discrete(2))

            def _draw(self, count):
                return {}

            def _advance(self, actions):
                return torch.ones(4), torch.tensor([0, 0, 1, 1]).bool(), torch.tensor([0, 1, 0, 1]).bool()

            def _observe(self):
                return torch.zeros(4, dtype=torch.long)

        env = SameStepVecEnv(Ends())
        env.reset()
        _, _, dones, infos = env.step(np.zeros(4, dtype=int))
        assert dones.tolist() == [False, True, True, True]
        assert [info.get("TimeLimit.truncated") for info in infos] == [None, True, False, False]

    def test_a_reset_begins_new_statistics(self):
        env = make_vec("rmc_rl/Copy-v0", 2, seed=0, env_kwargs=dict(length=1, delay=2, n_symbols=2))
        env.reset()
        for _ in range(3):
            env.step(np.ones(2, dtype=int))
        env.reset()
        total = np.zeros(2)
        for _ in range(4):
            _, rewards, dones, infos = env.step(np.ones(2, dtype=int))
            total += rewards
        assert dones.all()
        assert [info["episode"]["l"] for info in infos] == [4, 4]
        assert [info["episode"]["r"] for info in infos] == total.tolist()

    def test_rewards_may_be_written_to(self):
        env = make_vec("rmc_rl/Copy-v0", 2, seed=0)
        env.reset()
        env.step(np.zeros(2, dtype=int))[1][:] += 1  # SB3 adds the value of a truncated episode's last state

    def test_render(self):
        env = make_vec("rmc_rl/Copy-v0", 2, env_kwargs=dict(render_mode="rgb_array"))
        env.reset()
        assert env.render().shape[2] == 3


class TestAtari:
    @staticmethod
    def reference(game, **kwargs):
        """ale-py itself, which resets a step after the end: the last observation is a step's own."""
        return AtariVectorEnv(
            game, 1, stack_num=1, autoreset_mode=AutoresetMode.NEXT_STEP, reward_clipping=False, num_threads=1, **kwargs
        )

    @pytest.mark.parametrize(
        ("game", "env_id", "sticky", "frames"),
        [
            ("breakout", "ALE/Breakout-v5", 0.25, None),
            ("breakout", "BreakoutNoFrameskip-v4", 0.0, None),
            ("pong", "ALE/Pong-v5", 0.25, 403),
            ("ms_pacman", "ALE/MsPacman-v5", 0.25, 603),
        ],
    )
    def test_equals_ale(self, game, env_id, sticky, frames):
        limit = {} if frames is None else dict(max_num_frames_per_episode=frames)
        env = make_vec(env_id, 1, seed=4, env_kwargs=limit)
        reference = self.reference(game, repeat_action_probability=sticky, **limit)
        observation, (expected, _) = env.reset(), reference.reset(seed=4)
        assert env.observation_space.shape == (1, 84, 84)
        rng, score, length, episodes = np.random.default_rng(0), 0, 0, 0
        while episodes < 2:
            np.testing.assert_array_equal(observation, expected)
            action = rng.integers(0, 4, 1)
            observation, reward, done, (info,) = env.step(action)
            expected, raw, terminated, truncated, _ = reference.step(action)
            score, length = score + raw[0], length + 1
            assert reward[0] == np.sign(raw[0])
            assert done[0] == (terminated | truncated)[0]
            if done[0]:
                np.testing.assert_array_equal(info["terminal_observation"], expected[0])
                assert info["TimeLimit.truncated"] == truncated[0] == (frames is not None)
                assert (info["episode"]["r"], info["episode"]["l"]) == (score, length)
                score, length, episodes = 0, 0, episodes + 1
                expected, *_ = reference.step(action)  # begins the next episode
            else:
                assert info == {}

    def test_a_lost_life_ends_an_episode_but_not_the_game(self):
        env = make_vec("ALE/Breakout-v5", 2, seed=3, env_kwargs=dict(episodic_life=True))
        whole = make_vec("ALE/Breakout-v5", 2, seed=3)
        np.testing.assert_array_equal(env.reset(), whole.reset())
        rng, lost, games = np.random.default_rng(0), np.zeros(2, dtype=int), 0
        while games < 4:
            actions = rng.integers(0, 4, 2)
            observations, _, dones, infos = env.step(actions)
            expected, _, ends, expected_infos = whole.step(actions)
            np.testing.assert_array_equal(observations, expected)  # the same game, played on
            for index in np.flatnonzero(dones):
                over = bool(ends[index])
                assert ("episode" in infos[index]) == over
                assert not infos[index]["TimeLimit.truncated"]
                last = expected_infos[index]["terminal_observation"] if over else observations[index]
                np.testing.assert_array_equal(infos[index]["terminal_observation"], last)
                lost[index] += 1
                if over:
                    assert infos[index]["episode"]["r"] == expected_infos[index]["episode"]["r"]
                    assert lost[index] == 5
                    lost[index], games = 0, games + 1
            assert not (ends & ~dones).any()

    def test_unclipped_rewards_and_other_shapes(self):
        env = make_vec(
            "ALE/MsPacman-v5", 2, seed=0, env_kwargs=dict(reward_clipping=False, grayscale=False, stack_num=2, img_height=60)
        )
        observation = env.reset()
        assert observation.shape == (2, *env.observation_space.shape) == (2, 6, 60, 84)
        rewards = [env.step(np.array([step % 9, step % 5]))[1] for step in range(100)]
        assert np.max(rewards) >= 10

    def test_normalised(self):
        env = VecNormalize(make_vec("ALE/Pong-v5", 2, seed=0), norm_obs=False)
        env.reset()
        rewards = [env.step(np.zeros(2, dtype=int))[1] for _ in range(100)]
        assert np.unique(np.abs(rewards)).tolist() not in ([0.0], [0.0, 1.0])  # scaled

    def test_a_reset_in_the_middle_of_a_game(self):
        env = make_vec("ALE/Breakout-v5", 1, seed=0, env_kwargs=dict(episodic_life=True))
        env.reset()
        rng = np.random.default_rng(0)
        for _ in range(20):
            env.step(rng.integers(0, 4, 1))
        env.reset()
        lives, score, length = 0, 0.0, 0
        while True:
            _, reward, done, (info,) = env.step(rng.integers(0, 4, 1))
            score, length, lives = score + reward[0], length + 1, lives + int(done[0])
            if "episode" in info:
                break
        assert lives == 5  # the first lost life is not taken for the end of the game before
        assert (info["episode"]["r"], info["episode"]["l"]) == (score, length)  # Breakout's first rows score 1

    @pytest.mark.parametrize("name", ["grayscale", "maxpool", "reward_clipping", "episodic_life", "full_action_space"])
    def test_flags_are_true_or_false(self, name):
        with pytest.raises(UsageError, match=f"{name} must be true or false, got 'maybe'"):
            make_vec("ALE/Pong-v5", 1, env_kwargs={name: "maybe"})


class TestMiniGrid:
    def test_cells_in_view_by_default(self):
        env = make_vec("MiniGrid-MemoryS7-v0", 2, seed=0)
        observations = env.reset()
        assert observations.shape == (2, 7 * 7 * 20)
        assert set(np.unique(observations)) == {0, 1}
        # one object, one colour and one state for each cell
        assert (observations.reshape(2, 49, 20).sum(-1) == 3).all()

    def test_other_views(self):
        missions = [make_vec("BabyAI-GoToObj-v0", 1, seed=seed, env_kwargs=dict(view="flat")).reset() for seed in range(9)]
        letters = np.stack([observation[0, 147:] for observation in missions])
        assert len(np.unique(letters, axis=0)) > 1  # the text is in it
        pixels = make_vec("MiniGrid-MemoryS7-v0", 1, seed=0, env_kwargs=dict(view="pixels"))
        assert pixels.observation_space.shape == (56, 56, 3)
        assert is_image_space(pixels.observation_space)

    def test_keywords_of_the_environment(self):
        assert make_vec("MiniGrid-MemoryS7-v0", 1, env_kwargs=dict(size=9, max_steps=5)).get_attr("max_steps") == [5]

    def test_mistakes(self, monkeypatch):
        with pytest.raises(UsageError, match="unknown view 'onehots'; did you mean 'onehot'"):
            make_vec("MiniGrid-MemoryS7-v0", 1, env_kwargs=dict(view="onehots"))
        with pytest.raises(UsageError, match=r"unknown env 'MiniGrid-MemoryS8-v0'; did you mean 'MiniGrid-MemoryS"):
            make_vec("MiniGrid-MemoryS8-v0", 1)
        monkeypatch.setitem(sys.modules, "minigrid", None)
        with pytest.raises(UsageError, match=r"needs minigrid: pip install 'rmc-rl\[minigrid\]'"):
            make_vec("MiniGrid-MemoryS7-v0", 1)


MINATAR = {"Asterix": (4, 5), "Breakout": (4, 3), "Freeway": (7, 3), "Seaquest": (10, 6), "SpaceInvaders": (6, 4)}


class TestMinAtar:
    @pytest.mark.parametrize(("game", "sizes"), MINATAR.items())
    def test_each_game(self, game, sizes):
        planes, actions = sizes
        env = make_vec(f"MinAtar/{game}-v1", 2, seed=0)
        observations = env.reset()
        assert (observations.shape, observations.dtype) == ((2, 10, 10, planes), np.float32)
        assert set(np.unique(observations)) == {0, 1}
        assert env.action_space.n == actions

    def test_equals_the_game_itself(self):
        game = gymnasium.make("MinAtar/SpaceInvaders-v1").unwrapped
        env = make_vec("MinAtar/SpaceInvaders-v1", 1, seed=4)
        expected, (found,) = game.reset(seed=4)[0], env.reset()
        random = np.random.default_rng(0)
        for _ in range(300):
            np.testing.assert_array_equal(found, expected)
            action = random.integers(4)
            expected, reward, terminated, *_ = game.step(action)
            (found,), rewards, dones, infos = env.step(np.array([action]))
            assert (rewards[0], dones[0]) == (reward, terminated)
            if terminated:
                np.testing.assert_array_equal(infos[0]["terminal_observation"], expected)
                expected = game.reset()[0]

    def test_keywords_of_the_game(self):
        env = make_vec("MinAtar/Breakout-v1", 1, env_kwargs=dict(sticky_action_prob=0.0))
        assert env.envs[0].unwrapped.game.sticky_action_prob == 0

    def test_pictures(self):
        env = make_vec("MinAtar/Breakout-v1", 2, seed=0, pictures=True)
        env.reset()
        for _ in range(2):  # the ball leaves its trail
            env.step(np.zeros(2, dtype=int))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            frames = env.get_images()
        assert {(frame.shape, frame.dtype) for frame in frames} == {((240, 240, 3), np.dtype(np.uint8))}
        assert len(np.unique(frames[0].reshape(-1, 3), axis=0)) == 5  # paddle, ball, its trail, bricks, nothing

    def test_runs_go_on_where_they_were(self):
        copies = make_vec("MinAtar/SpaceInvaders-v1", 1, seed=0).envs
        copies[0].reset(seed=0)
        (later,) = unpickled_copies(pickled_copies(copies))
        for _ in range(20):
            np.testing.assert_equal(copies[0].step(1), later.step(1))

    def test_mistakes(self, monkeypatch):
        with pytest.raises(UsageError, match="unknown env 'MinAtar/Breakuot-v1'; did you mean 'MinAtar/Breakout-v1'"):
            make_vec("MinAtar/Breakuot-v1", 1)
        monkeypatch.setitem(sys.modules, "minatar.gym", None)
        with pytest.raises(UsageError, match=r"needs minatar: pip install 'rmc-rl\[minatar\]'"):
            make_vec("MinAtar/Breakout-v1", 1)


class Masked(CopyWorld):
    """A world with methods that return batched, listed and common results."""

    def action_masks(self):
        return torch.nn.functional.one_hot(torch.arange(self.num_envs) % self.n_symbols, self.n_symbols).bool()

    def names(self):
        return [f"copy {index}" for index in range(self.num_envs)]

    def parts(self):
        return {"time": self.time, "delay": self.delay}

    def size(self):
        return (1, 2, 3)


class TestAttributesAndMethods:
    def env(self, n_envs=2):
        env = SameStepVecEnv(Masked(n_envs, n_symbols=3, length=2, delay=5))
        env.seed(0)
        env.reset()
        return env

    @pytest.mark.parametrize("n_envs", [1, 2, 5])
    def test_each_copy_receives_its_own_part_of_a_result(self, n_envs):
        env = self.env(n_envs)
        masks = env.env_method("action_masks")
        assert all(isinstance(mask, np.ndarray) and mask.shape == (3,) for mask in masks)
        np.testing.assert_array_equal(np.stack(masks).argmax(1), np.arange(n_envs) % 3)
        np.testing.assert_array_equal(np.stack(get_action_masks(env)), np.stack(masks))
        assert env.env_method("names") == [f"copy {index}" for index in range(n_envs)]
        assert env.env_method("names", indices=[n_envs - 1]) == [f"copy {n_envs - 1}"]
        assert env.env_method("parts") == [{"time": 0, "delay": 5}] * n_envs
        assert env.env_method("size") == [(1, 2, 3)] * n_envs  # common to all copies
        answers = env.env_method("answers")
        assert [answer.known for answer in answers] == [False] * n_envs

    def test_an_attribute_with_a_row_for_each_copy(self):
        env = self.env()
        symbols = env.vector.symbols.numpy()
        for found, row in zip(env.get_attr("symbols"), symbols, strict=True):
            np.testing.assert_array_equal(found, row)
        np.testing.assert_array_equal(env.get_attr("symbols", [1])[0], symbols[1])
        assert env.get_attr("action_space") == [spaces.Discrete(3)] * 2  # of one copy, as in DummyVecEnv
        env.set_attr("time", 3, indices=[1])
        assert env.get_attr("time") == [0, 3]
        env.set_attr("time", 1)
        assert env.get_attr("time") == [1, 1]

    def test_an_attribute_that_all_copies_share_is_set_for_all(self):
        env = self.env()
        env.set_attr("delay", 7, indices=[0, 1])
        assert env.get_attr("delay") == [7, 7]
        rule = r"set_attr\('delay'\) must be for all copies, which share this attribute, got \[1\]"
        with pytest.raises(UsageError, match=rule):
            env.set_attr("delay", 9, indices=[1])
        assert env.get_attr("delay") == [7, 7]

    def test_unknown_names_are_attribute_errors(self):
        env = self.env()
        assert not env.has_attr("dealy")
        with pytest.raises(AttributeError):
            env.env_method("dealy")


@pytest.mark.parametrize("env_id", ["ALE/Pong-v5", "rmc_rl/Copy-v0"])
def test_a_step_before_the_first_reset(env_id):
    env = make_vec(env_id, 2)
    with pytest.raises(gymnasium.error.ResetNeeded, match=r"reset\(\) must be called before step\(\)"):
        env.step(np.zeros(2, dtype=int))


class Reusing(gymnasium.vector.VectorEnv):
    """Two copies that write each step into the same memory; the second one is truncated at every third step."""

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
    num_envs = 2
    single_observation_space = spaces.Dict(a=spaces.Box(-9, 99, (), np.float32), b=spaces.Box(-9, 99, (2,), np.float32))
    single_action_space = spaces.Discrete(2)

    def __init__(self):
        self.seen = {"a": np.zeros(2, np.float32), "b": np.zeros((2, 2), np.float32)}
        self.last = {"a": np.zeros(2, np.float32), "b": np.zeros((2, 2), np.float32)}
        self.steps = 0

    def reset(self, *, seed=None, options=None):
        return self.seen, {}

    def step(self, actions):
        self.steps += 1
        for batch in (self.seen, self.last):
            batch["a"][:] = batch["b"][:] = self.steps
        cut = np.array([False, self.steps % 3 == 0])
        return self.seen, np.ones(2), np.zeros(2, bool), cut, {"final_obs": self.last, "_final_obs": cut}


@pytest.mark.parametrize("previous", [False, True])
def test_last_observations_are_copies(previous):
    env = SameStepVecEnv(Reusing())
    env = PreviousActionReward(env) if previous else env
    env.reset()
    kept = []
    for step in range(1, 7):
        infos = env.step(np.array([1, 0]))[3]
        kept += [(step, info["terminal_observation"]) for info in infos if "terminal_observation" in info]
    assert [step for step, _ in kept] == [3, 6]
    for step, last in kept:
        assert last["a"] == step
        assert last["b"].tolist() == [step, step]
        if previous:
            assert last["previous"].tolist() == [1, 0, 1]


class Scalar(gymnasium.Env):
    """Observations and actions without a dimension, or other actions."""

    observation_space = spaces.Box(-1, 1, (), np.float32)

    def __init__(self, action_space):
        self.action_space = action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return np.float32(0.5), {}

    def step(self, action):
        self.time += 1
        assert self.action_space.contains(action)
        return np.float32(0.25), 2.0, self.time == 3, False, {}


@pytest.mark.parametrize(
    ("action_space", "encoded"),
    [
        (spaces.Box(-1, 1, (), np.float32), None),
        (spaces.Box(-1, 1, (2, 2), np.float32), None),
        (spaces.MultiBinary((2, 2)), None),
        (spaces.Discrete(3), 3),
        (spaces.MultiDiscrete([2, 3]), 5),
        (spaces.MultiDiscrete([[2, 3], [2, 2]]), 9),
    ],
    ids=str,
)
def test_previous_action_and_reward_of_any_shape(action_space, encoded):
    env = PreviousActionReward(DummyVecEnv([lambda: Scalar(action_space)] * 2))
    size = encoded or int(np.prod(action_space.shape))
    first = env.reset()
    assert env.observation_space["previous"].shape == (size + 1,)
    assert (first["previous"] == 0).all()
    assert first["observation"].tolist() == [0.5, 0.5]
    action_space.seed(0)
    for step in range(3):
        actions = np.stack([action_space.sample() for _ in range(2)])
        seen, _, dones, infos = env.step(actions)
        last = [info.get("terminal_observation", {}) for info in infos]
        previous = np.stack([part["previous"] for part in last]) if step == 2 else seen["previous"]
        assert (previous[:, -1] == 2).all()
        if encoded is None:
            np.testing.assert_allclose(previous[:, :-1], actions.reshape(2, -1))
        else:
            assert (previous[:, :-1].sum(1) == max(1, actions[0].size)).all()  # a one-hot for each number
    assert dones.all()
    assert last[0]["observation"] == 0.25
    assert (seen["previous"] == 0).all()


def test_previous_actions_must_be_of_a_kind_that_sb3_knows():
    with pytest.raises(
        UsageError, match="the action space must be one of Discrete, MultiDiscrete, MultiBinary, Box, got Dict"
    ):
        PreviousActionReward(DummyVecEnv([lambda: Scalar(spaces.Dict(a=spaces.Discrete(2)))]))


@pytest.mark.parametrize("previous_action_reward", [False, True])
def test_numpy_numbers_are_accepted(previous_action_reward):
    env = make_vec(
        "rmc_rl/Copy-v0",
        np.int64(2),
        seed=np.uint8(3),
        env_kwargs=dict(n_symbols=np.int32(3), length=np.int64(2), delay=np.int16(4)),
        processes=np.bool_(False),
        previous_action_reward=np.bool_(previous_action_reward),
    )
    assert type(env.num_envs) is int
    env.reset()
    env.step(np.zeros(2, dtype=np.int8))
    atari = make_vec(
        "ALE/Pong-v5", np.int64(1), env_kwargs=dict(frameskip=np.int64(2), grayscale=np.bool_(True), maxpool=np.bool_(False))
    )
    assert atari.reset().shape == (1, 1, 84, 84)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise RuntimeError('no licence\\nfound')", "RuntimeError: no licence found (user_env.py, line 1)"),
        ("1 / 0", "ZeroDivisionError: division by zero (user_env.py, line 1)"),
        ("import no_such_thing", "No module named 'no_such_thing'"),
        ("import sys; sys.exit('usage: ...')", "SystemExit: usage: ..."),
        ("def f(:", "SyntaxError"),
        ("", "unknown env 'Mine-v0'; its module does not register it"),
    ],
)
def test_modules_that_cannot_be_used(code, message, tmp_path, monkeypatch):
    (tmp_path / "user_env.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "user_env", raising=False)
    with pytest.raises(UsageError, match=re.escape(message)) as mistake:
        make_vec("user_env:Mine-v0")
    assert "\n" not in str(mistake.value)


def test_a_module_of_the_working_directory(tmp_path, python):
    (tmp_path / "folder").mkdir()
    (tmp_path / "user_env.py").write_text(
        "import gymnasium\ngymnasium.register('Mine-v0', 'gymnasium.envs.classic_control:CartPoleEnv')\n"
    )
    script = tmp_path / "folder" / "script.py"  # so its folder, and not the working directory, is on the path
    script.write_text(
        "from rmc_rl import make_vec\n"
        "if __name__ == '__main__':\n"
        "    for processes in (False, True):\n"
        "        print(make_vec('user_env:Mine-v0', 2, processes=processes).reset().shape)\n"
    )
    run = python(str(script))
    assert run.stdout.split("\n")[:2] == ["(2, 4)"] * 2, run.stderr


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("MyMaze-v0", "unknown env 'MyMaze-v0'; to import the module that registers it, write 'module:MyMaze-v0'"),
        ("Copy-v0", "did you mean 'rmc_rl/Copy-v0'?"),
        ("rmc_rl/Copy-v7", "did you mean 'rmc_rl/Copy-v0'?"),
        ("CartPole-v7", "did you mean 'CartPole-v1'?"),
        ("ALE/Pong-v9", "did you mean 'ALE/Pong-v5'?"),
        ("rmc_rl:rmc_rl/Cpy-v0", "did you mean 'rmc_rl/Copy-v0'?"),
        ("no such env", "unknown env 'no such env'"),
        ("", "env must be the id of an environment, got ''"),
    ],
)
def test_unknown_ids(env_id, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        make_vec(env_id)


class Broken(gymnasium.Env):
    def __init__(self):
        raise KeyError("ball")


def test_an_environment_that_cannot_be_made():
    gymnasium.register("Broken-v0", Broken)
    with pytest.raises(UsageError, match=r"env 'Broken-v0' cannot be made: KeyError: 'ball' \(test_make_vec.py, line \d+\)"):
        make_vec("Broken-v0")
    del gymnasium.registry["Broken-v0"]


@pytest.mark.parametrize("grayscale", [True, False])
def test_atari_can_be_drawn_and_recorded(grayscale, tmp_path, monkeypatch):
    env = make_vec("ALE/Pong-v5", 2, seed=0, env_kwargs=dict(render_mode="rgb_array", grayscale=grayscale, stack_num=2))
    assert env.render_mode == "rgb_array"
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.get_images()
    env.reset()
    env.step(np.zeros(2, dtype=int))
    frames = env.get_images()
    assert [frame.shape for frame in frames] == [(210, 160, 3)] * 2
    assert frames[0].dtype == np.uint8
    assert len(np.unique(frames[0])) > 2
    assert (frames[0][..., 0] != frames[0][..., 1]).any()  # the game's own colours, whatever the agent sees
    assert env.render().shape == (420, 160, 3)
    monkeypatch.setitem(sys.modules, "moviepy", types.ModuleType("moviepy"))  # which encodes the film
    recorder = VecVideoRecorder(env, str(tmp_path), lambda step: step == 0, video_length=9)
    recorder.reset()
    for _ in range(4):
        recorder.step(np.zeros(2, dtype=int))
    assert len(recorder.recorded_frames) == 5
    assert recorder.frames_per_sec == 15
    recorder.recorded_frames.clear()
    env.set_attr("render_mode", None)
    assert env.get_images() == [None, None]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(render_mode="human"), "render_mode must be one of [None, 'rgb_array'], got 'human'"),
        (dict(repeat_action_probability=float("nan")), "repeat_action_probability must be a finite number"),
        (dict(num_threads=6000), f"num_threads must be at most {os.cpu_count()}, got 6000"),
        (dict(frameskip=2**31), "frameskip must be at most 2147483647, got 2147483648"),
        (dict(img_height=10**6, img_width=10**6), "must need at most 8 GiB of memory"),
    ],
)
def test_numbers_of_atari(kwargs, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        make_vec("ALE/Pong-v5", 1, env_kwargs=kwargs)
