"""Playing episodes with an agent: state, masks and a fair choice of episodes."""

import gymnasium
import numpy as np
import pytest
import sb3_contrib
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from rmc_rl import EvalCallback, MlpMemoryPolicy, RecurrentPPO
from rmc_rl.agents.evaluation import evaluate_episodes
from rmc_rl.errors import UsageError
from rmc_rl.runs.folder import save_model
from rmc_rl.runs.normalization import load_normalization, normalization_path, normalize


class Counted(gymnasium.Env):
    """Four actions, of which one is valid at each step; episodes of a fixed length. Wrong actions are counted."""

    observation_space, action_space = spaces.Box(0, 1, (1,), np.float32), spaces.Discrete(4)
    wrong = 0

    def __init__(self, length=5):
        self.length = length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        Counted.wrong += action != self.time % 4
        self.time += 1
        return np.zeros(1, np.float32), 1.0, self.time == self.length, False, {}

    def action_masks(self):
        return np.arange(4) == self.time % 4


class Recording(MlpMemoryPolicy):
    """Keeps the state that each call of predict is handed."""

    states = []

    def predict(self, observation, state=None, episode_start=None, deterministic=False, action_masks=None):
        Recording.states.append(None if state is None else state[0].copy())
        return super().predict(observation, state, episode_start, deterministic, action_masks)


def make_env(*lengths):
    return DummyVecEnv([lambda length=length: Monitor(Counted(length)) for length in lengths])


def make_model(env, algorithm=RecurrentPPO, policy=MlpMemoryPolicy):
    return algorithm(policy, env, n_steps=8, batch_size=8, policy_kwargs=dict(core="gru", core_kwargs=dict(width=4)), seed=0)


@pytest.fixture(autouse=True)
def nothing_counted():
    Counted.wrong = 0
    Recording.states = []


@pytest.mark.parametrize("algorithm", [RecurrentPPO, sb3_contrib.RecurrentPPO])
def test_state_and_masks_are_handed_back(algorithm):
    env = make_env(5, 5)
    model = make_model(env, algorithm, Recording)
    found = evaluate_episodes(model, env, 4)
    assert (found.returns, found.lengths) == ([5.0] * 4, [5] * 4)
    assert Counted.wrong == 0
    assert Recording.states[0] is None
    assert all(np.abs(state).max() > 0 for state in Recording.states[1:])


def test_short_episodes_do_not_count_too_often():
    env = make_env(2, 20)
    found = evaluate_episodes(make_model(env), env, 6)
    assert sorted(found.lengths) == [2, 2, 2, 20, 20, 20]
    assert sorted(evaluate_episodes(make_model(env), env, 5).lengths) == [2, 2, 20, 20, 20]
    with pytest.raises(UsageError, match="episodes must be a whole number"):
        evaluate_episodes(make_model(env), env, 0)


def test_the_end_of_each_episode_is_reported():
    env, ends = make_env(3, 3), []
    evaluate_episodes(make_model(env), env, 5, at_episode_end=lambda: ends.append(1))
    assert len(ends) == 5


def test_the_callback_keeps_state_and_masks(tmp_path):
    env = make_env(5)
    model = make_model(env, policy=Recording)
    callback = EvalCallback(make_env(5), eval_freq=8, n_eval_episodes=2, best_model_save_path=str(tmp_path), verbose=0)
    model.learn(16, callback=callback)
    assert Counted.wrong == 0
    assert callback.last_mean_reward == 5
    assert Recording.states[0] is None
    assert all(np.abs(state).max() > 0 for state in Recording.states[1:10])
    assert model is callback.model
    RecurrentPPO.load(tmp_path / "best_model.zip")


class Scales(gymnasium.Env):
    """A number around 1000, in a dictionary or alone."""

    action_space = spaces.Discrete(2)

    def __init__(self, in_dictionary):
        number = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.observation_space = spaces.Dict(number=number, word=spaces.Discrete(3)) if in_dictionary else number
        self.in_dictionary = in_dictionary

    def observe(self):
        number = self.np_random.normal(1000, 10, 2).astype(np.float32)
        return dict(number=number, word=1) if self.in_dictionary else number

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self.observe(), {}

    def step(self, action):
        self.time += 1
        return self.observe(), 100.0, self.time == 4, False, {}


@pytest.mark.parametrize("in_dictionary", [False, True])
@pytest.mark.parametrize("what", [True, "obs", "reward"])
def test_statistics_of_normalised_observations_come_back(tmp_path, in_dictionary, what):
    env = normalize(DummyVecEnv([lambda: Monitor(Scales(in_dictionary))]), what, gamma=0.9)
    policy = "MultiInputMemoryPolicy" if in_dictionary else "MlpMemoryPolicy"
    model = RecurrentPPO(policy, env, n_steps=8, batch_size=8, policy_kwargs=dict(core="memoryless"), seed=0)
    model.learn(64)
    save_model(model, tmp_path / "model.zip")
    path = normalization_path(tmp_path / "model.zip")
    loaded = load_normalization(path, DummyVecEnv([lambda: Monitor(Scales(in_dictionary))]))
    assert isinstance(loaded, VecNormalize)
    assert (loaded.training, loaded.norm_reward, loaded.norm_obs) == (False, False, what != "reward")
    example = env.get_original_obs()
    first, second = env.normalize_obs(example), loaded.normalize_obs(example)
    for name in example if in_dictionary else [()]:
        assert np.array_equal(first[name], second[name])
    number = first["number"] if in_dictionary else first
    assert (np.abs(number).max() < 10) == (what != "reward")
    assert loaded.ret_rms.var == env.ret_rms.var != 1


def test_statistics_of_other_observations_are_refused(tmp_path):
    env = normalize(DummyVecEnv([lambda: Scales(False)]), True, gamma=0.9)
    save_model(RecurrentPPO("MlpMemoryPolicy", env, n_steps=8, policy_kwargs=dict(core="memoryless")), tmp_path / "m.zip")
    path = normalization_path(tmp_path / "m.zip")
    with pytest.raises(UsageError, match="must hold the statistics of this environment's observations"):
        load_normalization(path, make_env(5))
    for text in ("", "[]", "{}", path.read_text()[:80], path.read_text().replace("mean", "mode")):
        path.write_text(text)
        with pytest.raises(UsageError, match="must hold the statistics"):
            load_normalization(path, DummyVecEnv([lambda: Scales(False)]))


@pytest.mark.parametrize("what", ["rew", 3, 1, "true", []])
def test_another_choice_of_what_to_normalise_is_refused(what):
    with pytest.raises(UsageError, match="normalize must be true, false, obs or reward"):
        normalize(make_env(5), what, gamma=0.9)
