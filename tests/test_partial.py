"""Environments made partially observable: what is hidden or disturbed, and that it is saved and repeated."""

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from rmc_rl import make_vec
from rmc_rl.envs.partial import PartialObservation, make_partial
from rmc_rl.errors import UsageError

N = 64
SPACES = {
    "vector": spaces.Box(-1000, 1000, (3,), np.float32),
    "positive": spaces.Box(2, 1000, (3,), np.float32),
    "image": spaces.Box(0, 255, (1, 6, 6), np.uint8),
    "discrete": spaces.Discrete(1001),
    "multi": spaces.MultiDiscrete([1001, 1001, 1001]),
    "binary": spaces.MultiBinary(3),
}


class Clock(VecEnv):
    """``N`` copies that observe the step, counted from 3 on, and whose episodes have ``length`` steps."""

    def __init__(self, space, length=5):
        super().__init__(N, space, spaces.Discrete(2))
        self.length = length

    def _observe(self, time):
        space = self.observation_space
        if isinstance(space, spaces.Dict):
            return {key: np.full((N, *part.shape), time, part.dtype) for key, part in space.spaces.items()}
        value = time % 2 if isinstance(space, spaces.MultiBinary) else time
        return np.full((N, *(space.shape or ())), value, space.dtype)

    def reset(self):
        self.time = 3
        return self._observe(3)

    def step_async(self, actions):
        self.actions = actions

    def step_wait(self):
        self.time += 1
        over = self.time == 3 + self.length
        infos = [{} for _ in range(N)]
        if over:
            last = self._observe(self.time)
            for index, info in enumerate(infos):
                info["terminal_observation"] = (
                    {key: part[index] for key, part in last.items()} if isinstance(last, dict) else last[index]
                )
            self.time = 3
        return self._observe(self.time), np.zeros(N, np.float32), np.full(N, over), infos

    def get_attr(self, attr_name, indices=None):
        return [None] * N

    close = set_attr = env_method = env_is_wrapped = lambda *_args, **_kwargs: None


def played(env, steps=1):
    """The observations of a reset and some steps, and the infos of the last one."""
    seen, infos = [env.reset()], []
    for _ in range(steps):
        observations, _, _, infos = env.step(np.zeros(N, int))
        seen.append(observations)
    return seen, infos


def test_nothing_is_wrapped_without_a_reason():
    env = Clock(SPACES["vector"])
    assert make_partial(env, None) is env
    assert make_partial(env, dict(hide=[], flicker=0.0, noise=0, drop_sensors=None, delay=0)) is env


def test_hidden_numbers_are_left_out():
    env = make_vec("CartPole-v1", 2, seed=0, partial={"hide": [1, 3]})
    plain = make_vec("CartPole-v1", 2, seed=0)
    assert env.observation_space == spaces.Box(plain.observation_space.low[::2], plain.observation_space.high[::2])
    np.testing.assert_array_equal(env.reset(), plain.reset()[:, ::2])
    for _ in range(40):
        (seen, rewards, dones, infos), (whole, whole_rewards, whole_dones, whole_infos) = (
            each.step(np.ones(2, int)) for each in (env, plain)
        )
        np.testing.assert_array_equal(seen, whole[:, ::2])
        np.testing.assert_array_equal([rewards, dones], [whole_rewards, whole_dones])
        for index in np.flatnonzero(dones):
            np.testing.assert_array_equal(
                infos[index]["terminal_observation"], whole_infos[index]["terminal_observation"][::2]
            )
    assert env.observation_space.contains(seen[0])


@pytest.mark.parametrize("kind", ["multi", "binary"])
def test_hidden_numbers_of_discrete_vectors(kind):
    env = PartialObservation(Clock(SPACES[kind]), hide=[0])
    assert env.observation_space.shape == (2,)
    assert env.observation_space.contains(played(env)[0][1][0])


def test_hidden_parts_of_a_dict():
    env = PartialObservation(Clock(spaces.Dict(a=SPACES["vector"], b=SPACES["image"])), hide=["a"], noise=0.01, delay=1)
    assert list(env.observation_space.spaces) == ["b"]
    (first, second), _ = played(env)
    assert list(first) == ["b"]
    assert env.observation_space.contains({"b": second["b"][0]})


@pytest.mark.parametrize("kind", SPACES)
def test_a_flicker_blanks_whole_observations(kind):
    env = PartialObservation(Clock(SPACES[kind], length=1000), flicker=0.3)
    env.seed(0)
    seen = np.stack(played(env, 200)[0][::2])  # odd times
    blank = {"positive": 2, "discrete": 1001, "multi": 1001}.get(kind, 0)
    # (T, N, *shape) -> (T, N, numbers)
    is_blank = (seen == blank).reshape(*seen.shape[:2], -1)
    assert (is_blank.all(-1) == is_blank.any(-1)).mean() > 0.99
    assert is_blank.all(-1).mean() == pytest.approx(0.3, abs=0.03)
    assert all(env.observation_space.contains(observation) for observation in seen[:3, 0])


@pytest.mark.parametrize("kind", SPACES)
def test_each_sensor_drops_out_by_itself(kind):
    env = PartialObservation(Clock(SPACES[kind], length=1000), drop_sensors=0.3)
    env.seed(0)
    seen = np.stack(played(env, 200)[0])
    blank = {"positive": 2, "discrete": 1001, "multi": 1001}.get(kind, 0)
    if kind == "binary":
        seen = seen[::2]  # times that are not zero anyway
    is_blank = (seen == blank).reshape(*seen.shape[:2], -1)
    assert is_blank.mean() == pytest.approx(0.3, abs=0.03)
    if is_blank.shape[-1] > 1:
        assert is_blank.all(-1).mean() < 0.1


def test_noise_has_the_stated_size():
    env = PartialObservation(Clock(SPACES["vector"], length=1000), noise=0.5)
    errors = np.stack([seen - time for time, seen in enumerate(played(env, 200)[0], start=3)])
    assert (errors.mean(), errors.std()) == pytest.approx((0, 0.5), abs=0.02)
    images = PartialObservation(Clock(SPACES["image"], length=1000), noise=0.2)
    spread = np.stack(played(images, 50)[0])
    assert spread.dtype == np.uint8
    assert spread.max() == pytest.approx(4 * 0.2 * 255, rel=0.3)  # the largest of many
    positive = PartialObservation(Clock(SPACES["positive"]), noise=5)
    assert positive.observation_space.contains(played(positive)[0][1][0])  # within the bounds


def test_late_observations():
    env = PartialObservation(Clock(SPACES["vector"], length=5), delay=2)
    seen, infos = played(env, 5)
    # the first observation is repeated; after the end the next episode begins
    assert [int(observations[0, 0]) for observations in seen] == [3, 3, 3, 4, 5, 3]
    assert int(infos[0]["terminal_observation"][0]) == 6  # two steps before the last, 8
    seen, _ = played(env, 8)
    assert [int(observations[0, 0]) for observations in seen] == [3, 3, 3, 4, 5, 3, 3, 3, 4]


@pytest.mark.parametrize("env_id", ["CartPole-v1", "rmc_rl/TMaze-v0", "ALE/Pong-v5"])
def test_the_seed_decides_what_is_seen(env_id):
    def seen(seed):
        env = make_vec(env_id, 2, seed=seed, partial=dict(flicker=0.5, delay=1))
        return np.stack([env.reset(), *(env.step(np.zeros(2, int))[0] for _ in range(12))])

    first = seen(0)
    np.testing.assert_array_equal(first, seen(0))
    assert not np.array_equal(first, seen(1))


def test_the_state_is_saved():
    def make(seed):
        env = PartialObservation(Clock(SPACES["vector"], length=7), noise=0.1, flicker=0.2, delay=3)
        env.seed(seed)
        return env

    env, other = make(0), make(1)
    played(env, 4)
    other.reset()
    other.venv.time = env.venv.time
    other.load_state_dict(env.state_dict())
    for _ in range(9):
        np.testing.assert_array_equal(*(each.step(np.zeros(N, int))[0] for each in (env, other)))
    with pytest.raises(UsageError, match=r"partial.delay must have stored observations of shapes"):
        PartialObservation(Clock(SPACES["vector"]), delay=1).load_state_dict(env.state_dict())


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("vector", dict(hide=[3]), r"partial.hide must hold indices from 0 to 2, as in partial.hide=\[1\], got \[3\]"),
        ("vector", dict(hide=[True]), "must hold indices"),
        ("vector", dict(hide=1), r"partial.hide must be a list of indices or of keys, as in \[1, 3\], got 1"),
        ("vector", dict(hide=[0, 1, 2]), "must leave one of the 3 numbers"),
        ("image", dict(hide=[0]), "needs observations that are a vector or a Dict"),
        ("discrete", dict(hide=[0]), "needs observations that are a vector or a Dict"),
        ("discrete", dict(noise=0.1), "partial.noise needs a Box among the observations"),
        ("vector", dict(flicker=1.5), "partial.flicker must be a finite number at least 0 and at most 1, got 1.5"),
        ("vector", dict(drop_sensors=-1), "partial.drop_sensors must be a finite number"),
        ("vector", dict(noise=float("nan")), "partial.noise must be a finite number at least 0"),
        ("vector", dict(delay=1.5), "partial.delay must be a whole number of at least 0"),
        ("vector", dict(flickr=0.1), "unknown key of partial 'flickr'; did you mean 'flicker'"),
    ],
)
def test_mistakes(kind, arguments, message):
    with pytest.raises(UsageError, match=message):
        make_partial(Clock(SPACES[kind]), arguments)


def test_mistakes_in_a_dict():
    with pytest.raises(UsageError, match=r"unknown part of the observation in partial.hide 'imag'; did you mean 'image'"):
        PartialObservation(Clock(spaces.Dict(image=SPACES["image"], b=SPACES["vector"])), hide=["imag"])
