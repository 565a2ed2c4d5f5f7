"""
Scripts as people publish them for ``sb3_contrib.RecurrentPPO``, run with the stock class and with ours.

Each is a function of the algorithm's class that returns what its user sees; ours must return the same.
"""

import io

import numpy as np
import pytest
import sb3_contrib
import torch
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from sb3_contrib.ppo_recurrent import MlpLstmPolicy as StockMlpLstmPolicy
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CheckpointCallback,
    EvalCallback,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import SimpleMultiObsEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecFrameStack, VecMonitor, VecNormalize

import rmc_rl
from rmc_rl.errors import UsageError

SIZES = dict(lstm_hidden_size=8)
OWN_KEYS = {"train/gradient_norm"}  # logged by ours only
pytestmark = pytest.mark.filterwarnings(
    "ignore:Training and eval env", "ignore:batch_size", "ignore:The environment is already wrapped"
)


def new(algorithm, env="CartPole-v1", policy="MlpLstmPolicy", **settings):
    defaults = dict(n_steps=16, batch_size=16, n_epochs=1, seed=0, device="cpu", policy_kwargs=dict(SIZES))
    return algorithm(policy, env, **(defaults | settings))


def form(value):
    """The type of a value, and dtype and shape of arrays: what stays the same where numbers are random."""
    if isinstance(value, tuple | list):
        return [form(part) for part in value]
    if isinstance(value, np.ndarray | torch.Tensor):
        return type(value).__name__, str(value.dtype), tuple(value.shape)
    return type(value).__name__


class ChangeBuffer(BaseCallback):
    """Changes the buffer in each way that NumPy has, after each rollout."""

    def _on_step(self):
        self.locals["rewards"] += 1
        return True

    def _on_rollout_end(self):
        buffer = self.model.rollout_buffer
        buffer.rewards -= 1
        buffer.rewards = buffer.rewards * 2
        buffer.advantages = buffer.advantages - buffer.advantages.mean()
        buffer.returns[:] = 5
        buffer.returns += 1


def change_the_buffer(algorithm, _):
    model = new(algorithm, make_vec_env("CartPole-v1", 3)).learn(48, callback=ChangeBuffer())
    buffer = model.rollout_buffer
    return float(buffer.rewards.min()), float(buffer.rewards.max()), float(buffer.returns.mean())


def callbacks_of_sb3(algorithm, folder):
    best = StopTrainingOnRewardThreshold(1, verbose=0)
    evaluates = EvalCallback(
        make_vec_env("CartPole-v1", 1),
        callback_on_new_best=best,
        best_model_save_path=folder,
        log_path=folder,
        eval_freq=20,
        verbose=0,
    )
    saves = CheckpointCallback(8, folder, name_prefix="model", verbose=0)
    model = new(algorithm).learn(100, callback=[evaluates, saves])
    algorithm.load(folder / "best_model")
    files = sorted(path.name for path in folder.iterdir())
    stops = new(algorithm).learn(5000, callback=StopTrainingOnMaxEpisodes(3)).num_timesteps < 5000
    return model.num_timesteps, files, stops


def wrappers_of_sb3(algorithm, folder):
    env = VecNormalize(make_vec_env("Pendulum-v1", 2))
    model = new(algorithm, env).learn(32)
    model.save(folder / "model")
    env.save(str(folder / "statistics"))
    again = VecNormalize.load(str(folder / "statistics"), make_vec_env("Pendulum-v1", 2))
    model = algorithm.load(folder / "model", env=again).learn(32, reset_num_timesteps=False)
    stacked = VecMonitor(VecFrameStack(make_vec_env("CartPole-v1", 2), 3))
    found = new(algorithm, stacked).learn(100)
    return model.num_timesteps, type(model.get_env()).__name__, sorted(found.ep_info_buffer[0]), found.observation_space.shape


def learn_save_load_learn(algorithm, folder):
    schedule = LinearSchedule(1e-3, 1e-4, 1)
    model = new(algorithm, learning_rate=schedule, clip_range=lambda left: 0.1 * left).learn(32)
    model.learn(32, reset_num_timesteps=False)
    model.set_env(make_vec_env("CartPole-v1", 1))
    model.learn(16)
    model.save(folder / "model")
    model.save(memory := io.BytesIO())
    memory.seek(0)
    overrides = dict(n_steps=8, batch_size=8, gamma=0.9, learning_rate=1e-4, ent_coef=0.1, verbose=0)
    changed = algorithm.load(memory, env=make_vec_env("CartPole-v1", 2), device="cpu", **overrides).learn(16)
    frozen = dict(learning_rate=0.0, lr_schedule=lambda _: 0.0, clip_range=lambda _: 0.0)
    replayed = algorithm.load(folder / "model", custom_objects=frozen)
    buffer, rate = changed.rollout_buffer, changed.policy.optimizer.param_groups[0]["lr"]
    return model.num_timesteps, changed.num_timesteps, buffer.buffer_size, buffer.gamma, rate, replayed.lr_schedule(1)


def predict_in_a_loop(algorithm, _):
    model = new(algorithm, policy_kwargs=SIZES | dict(n_lstm_layers=2))
    env = model.get_env()
    obs, lstm_states, episode_starts = env.reset(), None, np.ones((1,), dtype=bool)
    for _ in range(5):
        action, lstm_states = model.predict(obs, state=lstm_states, episode_start=episode_starts, deterministic=True)
        obs, _, episode_starts, _ = env.step(action)
    zeros = tuple(np.zeros((2, 1, 8), dtype=np.float32) for _ in range(2))
    other = model.predict(obs, state=zeros, episode_start=np.zeros(1, dtype=bool))
    return form([action, lstm_states, other]), model.policy.lstm_hidden_state_shape


def attributes_of_the_policy(algorithm, _):
    found = []
    for choice in (dict(enable_critic_lstm=False), dict(shared_lstm=True, enable_critic_lstm=False), {}):
        policy = new(algorithm, policy_kwargs=SIZES | choice).policy
        for parameter in policy.lstm_actor.parameters():
            parameter.requires_grad = False
        names = ("lstm_actor", "lstm_critic", "critic", "shared_lstm", "enable_critic_lstm", "lstm_kwargs", "lstm_output_dim")
        found.append([form(getattr(policy, name)) for name in names])
        found.append([policy.lstm_actor.hidden_size, policy.lstm_actor.num_layers, sorted(policy.state_dict())])
        found.append([tuple(parameter.shape) for parameter in policy.parameters()])  # an optimizer numbers them in this order
    return found


def methods_of_the_policy(algorithm, _):
    policy = new(algorithm, policy_kwargs=SIZES | dict(n_lstm_layers=2)).policy
    pair = tuple(torch.zeros(policy.lstm_hidden_state_shape) for _ in range(2))
    states, starts, obs = RNNStates(pair, pair), torch.ones(1), torch.zeros(1, 4)
    acted = policy(obs, states, starts)
    distribution, after = policy.get_distribution(obs, pair, starts)
    values = policy.predict_values(obs, pair, starts)
    evaluated = policy.evaluate_actions(obs, acted[0], states, starts)
    return form([*acted, distribution, after, values, *evaluated])


def logged_keys(algorithm, folder):
    settings = dict(use_sde=True, clip_range_vf=0.2, target_kl=0.5)
    model = new(algorithm, make_vec_env("Pendulum-v1", 2), **settings)
    model.set_logger(configure(str(folder), ["csv"]))
    model.learn(500)
    model.logger.close()
    return sorted({*(folder / "progress.csv").read_text().splitlines()[0].split(",")} - OWN_KEYS)


def settings_without_a_limit(algorithm, _):
    new(algorithm, max_grad_norm=float("inf"), clip_range=float("inf"), learning_rate=0.0).learn(16)
    return new(algorithm, target_kl=0.0).learn(32)._n_updates


def dict_observations(algorithm, folder):
    env = make_vec_env(lambda: SimpleMultiObsEnv(random_start=False), 2)
    model = new(algorithm, env, "MultiInputLstmPolicy").learn(32)
    model.save(folder / "model")
    loaded = algorithm.load(folder / "model", env=env, device="cpu").learn(32)
    return form(loaded.predict(env.reset())), len(evaluate_policy(loaded, env, 1, warn=False))


def a_subclass(algorithm, folder):
    class Mine(algorithm):
        def __init__(self, policy, env, extra=1, n_steps=8, _init_setup_model=True, **settings):
            super().__init__(policy, env, n_steps=n_steps, _init_setup_model=False, **settings)
            self.extra = extra
            if _init_setup_model:
                self._setup_model()

        def train(self):
            super().train()
            self.logger.record("train/mine", 1)

    model = Mine("MlpLstmPolicy", "CartPole-v1", extra=5, batch_size=8, n_epochs=1).learn(16)
    model.save(folder / "model")
    return Mine.load(folder / "model").extra


SCRIPTS = [
    change_the_buffer,
    callbacks_of_sb3,
    wrappers_of_sb3,
    learn_save_load_learn,
    predict_in_a_loop,
    attributes_of_the_policy,
    methods_of_the_policy,
    logged_keys,
    settings_without_a_limit,
    dict_observations,
    a_subclass,
]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_the_user_sees_the_same(script, tmp_path):
    found = []
    for algorithm in (sb3_contrib.RecurrentPPO, rmc_rl.RecurrentPPO):
        folder = tmp_path / algorithm.__module__.split(".")[0]
        folder.mkdir()
        found.append(script(algorithm, folder))
    stock, ours = found
    assert ours == stock


# What one class saved, in the other

POLICIES = [
    dict(n_lstm_layers=2),
    dict(enable_critic_lstm=False),
    dict(shared_lstm=True, enable_critic_lstm=False),
    dict(share_features_extractor=False),
]


def actions_of(model):
    """What a model does on one sequence of observations."""
    generator, state, actions = np.random.default_rng(0), None, []
    for step in range(10):
        observation = generator.normal(size=(3, *model.observation_space.shape)).astype(np.float32)
        action, state = model.predict(observation, state, np.full(3, step in (0, 5)), deterministic=True)
        actions.append(action)
    return np.stack(actions), np.concatenate([half.ravel() for half in state])


@pytest.mark.parametrize("policy_kwargs", POLICIES, ids=str)
@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_files_load_in_the_other_class(policy_kwargs, env, tmp_path):
    pair = (sb3_contrib.RecurrentPPO, rmc_rl.RecurrentPPO)
    for name, (saver, loader) in enumerate((pair, pair[::-1])):
        saved = new(saver, env, policy_kwargs=SIZES | policy_kwargs, learning_rate=0.01).learn(48)
        saved.save(tmp_path / f"{name}")
        loaded = loader.load(tmp_path / f"{name}", env=saved.get_env(), device="cpu")
        placed = new(loader, env, policy_kwargs=SIZES | policy_kwargs, seed=1)
        placed.set_parameters(str(tmp_path / f"{name}"), device="cpu")
        copied = new(loader, env, policy_kwargs=SIZES | policy_kwargs, seed=2)
        copied.policy.load_state_dict(saved.policy.state_dict())
        for model in (loaded, placed, copied):
            for found, expected in zip(actions_of(model), actions_of(saved), strict=True):
                np.testing.assert_allclose(found, expected, atol=1e-5)
        for model in (loaded, placed):
            moments = model.policy.optimizer.state_dict()["state"]
            expected = saved.policy.optimizer.state_dict()["state"]
            assert moments.keys() == expected.keys()
            assert all(moments[key]["exp_avg"].equal(expected[key]["exp_avg"]) for key in expected)
        loaded.learn(32, reset_num_timesteps=False)
        assert loaded.num_timesteps == 80


def test_a_policy_that_ours_saved_loads_in_the_class_of_stock(tmp_path):
    policy = new(rmc_rl.RecurrentPPO, policy_kwargs={}).policy
    policy.save(tmp_path / "policy")
    loaded = StockMlpLstmPolicy.load(tmp_path / "policy", device="cpu")
    observation = np.ones((1, 4), dtype=np.float32)
    np.testing.assert_allclose(loaded.predict(observation)[1], policy.predict(observation)[1], atol=1e-6)


@pytest.mark.parametrize("name", ["core", "encoder"])
def test_our_own_arguments_of_a_policy_are_saved(name, tmp_path):
    policy_class, value = (rmc_rl.MlpMemoryPolicy, "gru") if name == "core" else ("MlpLstmPolicy", [7])
    policy = rmc_rl.RecurrentPPO(policy_class, "CartPole-v1", policy_kwargs={name: value}, device="cpu").policy
    policy.save(tmp_path / "policy")
    loaded = type(policy).load(tmp_path / "policy", device="cpu")
    assert {key: weight.shape for key, weight in loaded.state_dict().items()} == {
        key: weight.shape for key, weight in policy.state_dict().items()
    }


def test_early_stopping_is_reported(capsys):
    new(rmc_rl.RecurrentPPO, target_kl=1e-9, n_epochs=4, verbose=1).learn(32)
    assert "Early stopping at step 1 due to reaching max kl" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(max_grad_norm=None), "max_grad_norm must be a finite number above 0, got None"),
        (dict(max_grad_norm=0), "max_grad_norm must be a finite number above 0, got 0"),
        (dict(learning_rate=float("inf")), "learning_rate must be a finite number at least 0, got inf"),
        (dict(clip_range_vf=-1), "clip_range_vf must be a finite number above 0, got -1"),
        (dict(target_kl=-0.1), "target_kl must be a finite number at least 0, got -0.1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        new(rmc_rl.RecurrentPPO, **settings)


def test_a_subclass_of_the_policy_of_stock_is_refused_with_what_to_use():
    class Mine(StockMlpLstmPolicy):
        pass

    with pytest.raises(UsageError, match=r"MlpLstmPolicy.* or a subclass of one in rmc_rl\.agents, got 'Mine'"):
        rmc_rl.RecurrentPPO(Mine, "CartPole-v1")
