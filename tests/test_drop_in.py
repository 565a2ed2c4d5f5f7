"""
Whoever has a script for ``sb3_contrib.RecurrentPPO`` changes its import, and nothing else.

The first part tests what sb3-contrib's own tests of recurrent policies test, in our words.
"""

import inspect
import warnings

import numpy as np
import pytest
import sb3_contrib
import torch
from gymnasium import spaces
from gymnasium.wrappers import TransformObservation
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from test_policies import ACTIONS, OBSERVATIONS, VECTOR, Echo, echo

from rmc_rl import MlpMemoryPolicy, RecurrentPPO
from rmc_rl.agents.evaluation import evaluate_episodes
from rmc_rl.agents.lstm_policies import CnnLstmPolicy, MlpLstmPolicy
from rmc_rl.agents.rollout import Acting
from rmc_rl.agents.stock import StockRecurrentPPO
from rmc_rl.envs.previous_action_reward import PreviousActionReward
from rmc_rl.errors import NonFiniteError, UsageError

SMALL = dict(lstm_hidden_size=8)
LSTM_KWARGS = [
    {},
    dict(share_features_extractor=False),
    dict(shared_lstm=True, enable_critic_lstm=False),
    dict(enable_critic_lstm=True, n_lstm_layers=2, lstm_kwargs=dict(dropout=0.5)),
    dict(enable_critic_lstm=False, n_lstm_layers=2, lstm_kwargs=dict(dropout=0.5)),
    dict(enable_critic_lstm=False, share_features_extractor=False),
]


# What sb3-contrib's own tests test


@pytest.mark.parametrize("policy_kwargs", LSTM_KWARGS)
def test_cnn_lstm_policy(policy_kwargs):
    env = FakeImageEnv(screen_height=40, screen_width=40, n_channels=3)
    kwargs = dict(features_extractor_kwargs=dict(features_dim=32))
    RecurrentPPO("CnnLstmPolicy", env, n_steps=16, seed=0, n_epochs=2, policy_kwargs=SMALL | policy_kwargs | kwargs).learn(32)


@pytest.mark.parametrize("policy_kwargs", LSTM_KWARGS)
def test_mlp_lstm_policy(policy_kwargs):
    RecurrentPPO("MlpLstmPolicy", "CartPole-v1", n_steps=16, seed=0, policy_kwargs=SMALL | policy_kwargs).learn(32)


def test_the_lstm_policies_start_with_the_gates_of_torch():
    policy = RecurrentPPO("MlpLstmPolicy", "CartPole-v1", policy_kwargs=dict(lstm_hidden_size=64)).policy
    for core in (policy.core, policy.critic_core):
        assert core.rnn.bias_ih_l0.abs().max() <= 1 / 8  # 1 / sqrt(64)


@pytest.mark.parametrize(
    "policy_kwargs", [dict(shared_lstm=True), dict(shared_lstm=True, enable_critic_lstm=False, share_features_extractor=False)]
)
@pytest.mark.parametrize("error", [UsageError, AssertionError])  # sb3-contrib raises the second one
def test_choices_of_the_critic_that_exclude_themselves(policy_kwargs, error):
    with pytest.raises(error, match="shared_lstm"):
        RecurrentPPO("MlpLstmPolicy", "CartPole-v1", policy_kwargs=policy_kwargs)


@pytest.mark.parametrize("env", ["Pendulum-v1", "CartPole-v1"])
def test_run_by_id(env):
    RecurrentPPO("MlpLstmPolicy", env, n_steps=16, seed=0).learn(32)


def test_run_with_gsde():
    settings = dict(sde_sample_freq=4, use_sde=True, clip_range_vf=0.1)
    RecurrentPPO("MlpLstmPolicy", "Pendulum-v1", n_steps=16, seed=0, **settings).learn(200)


@pytest.mark.parametrize("policy_kwargs", LSTM_KWARGS)
def test_multi_input_lstm_policy(policy_kwargs):
    def as_dict(env):
        return TransformObservation(env, lambda obs: {"obs": obs}, spaces.Dict({"obs": env.observation_space}))

    env = make_vec_env("CartPole-v1", n_envs=1, wrapper_class=as_dict)
    model = RecurrentPPO("MultiInputLstmPolicy", env, n_steps=32, policy_kwargs=SMALL | policy_kwargs).learn(64)
    evaluate_policy(model, env, warn=False)


# A script as people write them


class ReadBuffer(BaseCallback):
    """Uses what callbacks of sb3-contrib see."""

    def __init__(self):
        super().__init__()
        self.names, self.means, self.shapes = set(), [], []

    def _on_step(self):
        self.names |= set(self.locals)
        assert isinstance(self.locals["actions"], np.ndarray)
        assert self.model.rollout_buffer.size() == self.model.rollout_buffer.pos == self.locals["n_steps"]
        return True

    def _on_rollout_end(self):
        buffer = self.model.rollout_buffer
        assert buffer.full
        self.means.append(
            [np.mean(part) for part in (buffer.rewards, buffer.values, buffer.log_probs, buffer.advantages, buffer.returns)]
        )
        self.shapes.append([np.shape(part) for part in (buffer.rewards, buffer.actions, buffer.episode_starts)])
        buffer.rewards[:] = buffer.rewards * 2
        values = torch.zeros(buffer.n_envs)
        buffer.compute_returns_and_advantage(last_values=values, dones=np.zeros(buffer.n_envs, dtype=bool))
        assert np.isclose(np.mean(buffer.returns - buffer.advantages), np.mean(buffer.values))


@pytest.mark.parametrize("algorithm", [RecurrentPPO, sb3_contrib.RecurrentPPO], ids=["ours", "stock"])
@pytest.mark.parametrize("observation", ["Box", "Dict"])
@pytest.mark.filterwarnings("ignore:batch_size 64", "ignore:Training and eval env")
def test_a_script_of_stock(algorithm, observation, tmp_path):
    space = OBSERVATIONS[observation][1]
    policy = "MlpLstmPolicy" if observation == "Box" else "MultiInputLstmPolicy"
    for batch_size in (64, None):
        model = algorithm(
            policy,
            echo(space, n_envs=4),
            n_steps=50,
            batch_size=batch_size,
            n_epochs=2,
            policy_kwargs=dict(lstm_hidden_size=8, n_lstm_layers=2),
            seed=0,
            device="cpu",
        )
        reads, evaluates = ReadBuffer(), EvalCallback(echo(space, n_envs=2), eval_freq=25, n_eval_episodes=2, verbose=0)
        model.learn(400, callback=CallbackList([reads, evaluates]))
        assert len(evaluates.evaluations_timesteps) == 0 or evaluates.n_calls == 100
        assert reads.shapes == [[(50, 4), (50, 4, 1), (50, 4)]] * 2
        expected = ("actions", "clipped_actions", "dones", "env", "episode_starts", "infos", "lstm_states", "new_obs")
        expected += ("log_probs", "n_steps", "obs_tensor", "rewards", "rollout_buffer", "self", "values")
        assert reads.names >= {*expected}
        model.save(tmp_path / "model")
        loaded = algorithm.load(tmp_path / "model", env=echo(space, n_envs=1), device="cpu")
        loaded.learn(50, reset_num_timesteps=False)
        assert loaded.num_timesteps == 450
        mean, _ = evaluate_policy(loaded, loaded.get_env(), 2, warn=False)
        assert mean == 7  # Echo gives 1 at each of 7 steps


def test_a_callback_sees_the_same_numbers_in_both_classes():
    found = []
    for algorithm in (RecurrentPPO, sb3_contrib.RecurrentPPO):
        kwargs = dict(core="gru", core_kwargs=dict(width=4))
        reads = ReadBuffer()
        settings = dict(n_steps=14, batch_size=28, n_epochs=1, learning_rate=1e-9, seed=0, device="cpu")
        algorithm(MlpMemoryPolicy, echo(), policy_kwargs=kwargs, **settings).learn(84, callback=reads)
        found.append(reads.means)
    np.testing.assert_allclose(*found, atol=1e-5)


def test_minibatches_in_the_form_of_stock():
    model = RecurrentPPO(MlpMemoryPolicy, echo(n_envs=3), n_steps=10, batch_size=12, sequence_length=4, n_epochs=1, seed=0)
    with pytest.warns(UserWarning, match="batch_size 12 does not divide"):
        model.learn(60)
    seen = 0
    policy = RecurrentPPO(MlpMemoryPolicy, echo(n_envs=3), n_steps=10, seed=0).policy
    policy.load_state_dict(model.policy.state_dict())
    model.collect_rollouts(model.env, ReadNothing().init_for(model), model.rollout_buffer, 10)
    for batch in model.rollout_buffer.get(12):
        values, log_prob, _ = policy.evaluate_actions(
            batch.observations, batch.actions, batch.lstm_states, batch.episode_starts
        )
        real = batch.mask > 0.5
        torch.testing.assert_close(values.flatten()[real], batch.old_values[real], rtol=0, atol=1e-5)
        torch.testing.assert_close(log_prob[real], batch.old_log_prob[real], rtol=0, atol=1e-5)
        seen += int(real.sum())
    assert seen == 30


class ReadNothing(BaseCallback):
    def init_for(self, model):
        self.init_callback(model)
        return self

    def _on_step(self):
        return True


# The signature


def test_the_arguments_are_those_of_stock_in_their_order_and_ours():
    stock = inspect.signature(sb3_contrib.RecurrentPPO).parameters
    ours = inspect.signature(RecurrentPPO).parameters
    assert list(ours)[: len(stock)] == list(stock)
    for name, parameter in stock.items():
        assert (ours[name].default, ours[name].kind) == (parameter.default, parameter.kind), name
    assert [*ours][len(stock) :] == ["sequence_length", "use_masking", "kwargs"]
    for name in ours:
        assert f":param {name}:" in RecurrentPPO.__doc__


def test_all_arguments_may_be_positional_as_in_stock():
    settings = (3e-4, 8, 16, 3, 0.9, 0.8, 0.1, None, False, 0.1, 0.4, 0.3, False, -1, 0.2, 50, None, SMALL, 0, 5, "cpu")
    names = list(inspect.signature(sb3_contrib.RecurrentPPO).parameters)[2:]
    model = RecurrentPPO("MlpLstmPolicy", echo(), *settings)
    stock = sb3_contrib.RecurrentPPO("MlpLstmPolicy", echo(), *settings)
    for name in names[: len(settings)]:
        if name not in ("policy_kwargs", "stats_window_size", "clip_range", "device"):
            assert getattr(model, name) == getattr(stock, name), name
    assert model._stats_window_size == 50
    with pytest.raises(UsageError, match="unknown argument of RecurrentPPO 'n_step'; did you mean 'n_steps'"):
        RecurrentPPO("MlpLstmPolicy", echo(), n_step=3)


# The rollout buffer


def visible(buffer):
    """The public names of an object, and of its attributes."""
    return {name for name in (*dir(type(buffer)), *vars(buffer)) if not name.startswith("_")}


class ReadStates(BaseCallback):
    """Compares the arrays of states with the states that were there."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def _on_rollout_start(self):
        self.seen = []

    def _on_step(self):
        self.seen.append(self.model._last_lstm_states)
        return True

    def _on_rollout_end(self):
        buffer = self.model.rollout_buffer
        arrays = (buffer.hidden_states_pi, buffer.cell_states_pi, buffer.hidden_states_vf, buffer.cell_states_vf)
        seen = [[half.numpy() for pair in states for half in pair] for states in self.seen]
        for found, expected in zip(arrays, zip(*seen, strict=True), strict=True):
            np.testing.assert_allclose(found, np.stack(expected), atol=1e-5)
        self.norm = [float(np.abs(array).mean()) for array in arrays]


@pytest.mark.parametrize("observation", ["Discrete", "Dict", "Box"])
@pytest.mark.parametrize("kwargs", [dict(n_lstm_layers=2), dict(shared_lstm=True, enable_critic_lstm=False)], ids=str)
@pytest.mark.filterwarnings("ignore:batch_size")
def test_the_buffer_has_what_that_of_stock_has(observation, kwargs):
    space = OBSERVATIONS[observation][1]
    policy = "MultiInputLstmPolicy" if observation == "Dict" else "MlpLstmPolicy"
    settings = dict(n_steps=15, batch_size=20, n_epochs=1, seed=0, device="cpu", policy_kwargs=SMALL | kwargs)
    pair = [algorithm(policy, echo(space, n_envs=3), **settings) for algorithm in (RecurrentPPO, sb3_contrib.RecurrentPPO)]
    for model in pair:
        model.learn(45, callback=(reads := ReadStates()))
        assert max(reads.norm) > 0.01
        model.collect_rollouts(model.env, ReadNothing().init_for(model), model.rollout_buffer, 15)
    ours, stock = (model.rollout_buffer for model in pair)
    assert isinstance(ours, sb3_contrib.common.recurrent.buffers.RecurrentRolloutBuffer)
    for name in sorted(visible(stock)):
        if name in ("generator_ready", "seq_start_indices", "seq_end_indices", "pad", "pad_and_flatten"):
            assert not hasattr(ours, name)
            continue
        found, expected = getattr(ours, name), getattr(stock, name)
        if isinstance(expected, dict) and name == "observations":
            found, expected = found["obs"] if "obs" in found else next(iter(found.values())), next(iter(expected.values()))
        if isinstance(expected, np.ndarray):
            assert found.shape == expected.shape, name
        elif isinstance(expected, int | float | bool | tuple | str | torch.device):
            assert found == expected, name


def test_a_buffer_says_what_it_does_not_have():
    buffer = RecurrentPPO("MlpLstmPolicy", echo(), policy_kwargs=SMALL).rollout_buffer
    with pytest.raises(AttributeError, match=r"seq_start_indices is of sb3-contrib's buffer only: use get\(\)"):
        _ = buffer.seq_start_indices
    with pytest.raises(AttributeError, match="has no attribute 'reward'"):
        _ = buffer.reward
    with pytest.raises(AttributeError):
        buffer.hidden_states_pi = 0
    with pytest.raises(UsageError, match="a rollout must have all its 128 steps before it is sampled, got 0"):
        next(buffer.get(8))
    buffer.full = True
    with pytest.raises(NotImplementedError, match="use get"):
        buffer.sample(3)


@pytest.mark.parametrize("observation", ["Box", "Dict"])
@pytest.mark.filterwarnings("ignore:batch_size")
def test_the_loops_of_stock_run_with_our_buffer(observation):
    class Copied(RecurrentPPO):
        """As if stock's methods were copied into a subclass, to change a line of them."""

        collect_rollouts = sb3_contrib.RecurrentPPO.collect_rollouts
        train = sb3_contrib.RecurrentPPO.train

    policy = "MlpLstmPolicy" if observation == "Box" else "MultiInputLstmPolicy"
    settings = dict(n_steps=15, batch_size=15, n_epochs=2, seed=0, device="cpu", policy_kwargs=SMALL)
    space = OBSERVATIONS[observation][1]
    model, ours = (algorithm(policy, echo(space, n_envs=3), **settings).learn(45) for algorithm in (Copied, RecurrentPPO))
    assert model.rollout_buffer.full
    for name in ("actions", "rewards", "episode_starts", "values", "log_probs", "advantages", "returns"):
        np.testing.assert_allclose(getattr(model.rollout_buffer, name), getattr(ours.rollout_buffer, name), atol=1e-5)


# Files of the stock class


@pytest.mark.parametrize("policy_kwargs", [*LSTM_KWARGS[:3], dict(enable_critic_lstm=False), dict(n_lstm_layers=2)])
def test_what_the_stock_class_saved_with_its_own_policies_loads(policy_kwargs, tmp_path):
    settings = dict(n_steps=16, batch_size=16, n_epochs=2, seed=0, device="cpu", policy_kwargs=SMALL | policy_kwargs)
    stock = sb3_contrib.RecurrentPPO("MlpLstmPolicy", echo(), **settings).learn(64)
    stock.save(tmp_path / "model")
    ours = RecurrentPPO.load(tmp_path / "model", env=echo(), device="cpu")
    assert type(ours.policy) is MlpLstmPolicy
    observation, states, starts = echo().reset(), [None, None], np.ones(2, dtype=bool)
    for _ in range(4):
        for index, model in enumerate((stock, ours)):
            _, states[index] = model.predict(observation, states[index], starts, deterministic=True)
        starts = np.zeros(2, dtype=bool)
        theirs, mine = (np.concatenate([half.swapaxes(0, 1).reshape(2, -1) for half in pair], 1) for pair in states)
        np.testing.assert_allclose(mine, theirs, atol=1e-6)
    moments = {}
    for model in (stock, ours):
        state, names = model.policy.optimizer.state, dict(model.policy.named_parameters())
        for name, parameter in names.items():
            name = name.replace("lstm_actor", "core.rnn").replace("lstm_critic", "critic_core.rnn")
            if parameter in state:
                moments.setdefault(name, []).append(state[parameter]["exp_avg_sq"])
    assert all(len(pair) == 2 and pair[0].equal(pair[1]) for pair in moments.values())
    ours.learn(64, reset_num_timesteps=False)
    ours.save(tmp_path / "ours")
    assert sb3_contrib.RecurrentPPO.load(tmp_path / "ours", device="cpu").num_timesteps == 128


@pytest.mark.parametrize("policy", [sb3_contrib.ppo_recurrent.MlpLstmPolicy, sb3_contrib.ppo_recurrent.CnnLstmPolicy])
def test_policy_classes_of_stock_mean_ours(policy):
    image = policy is sb3_contrib.ppo_recurrent.CnnLstmPolicy
    env = FakeImageEnv(screen_height=40, screen_width=40) if image else echo()
    assert type(RecurrentPPO(policy, env, policy_kwargs=SMALL).policy) is (CnnLstmPolicy if image else MlpLstmPolicy)


@pytest.mark.parametrize(
    ("policy_kwargs", "message"),
    [
        (dict(lstm_kwargs=dict(bidirectional=True)), "lstm_kwargs must leave bidirectional at False, got True"),
        (dict(lstm_kwargs=dict(drop_out=0.1)), "unknown argument in lstm_kwargs 'drop_out'; did you mean 'dropout'"),
        (dict(core="gru"), "MlpLstmPolicy sets core itself: use MlpMemoryPolicy, got core='gru'"),
        (dict(lstm_hidden_sizes=3), "unknown argument of MlpLstmPolicy 'lstm_hidden_sizes'; did you mean 'lstm_hidden_size'"),
        (dict(lstm_hidden_size=0), "width must be a whole number of at least 1, got 0"),
    ],
)
def test_what_cannot_be_mapped_is_refused_by_name(policy_kwargs, message):
    with pytest.raises(UsageError, match=message):
        RecurrentPPO("MlpLstmPolicy", echo(), policy_kwargs=policy_kwargs)


def test_a_policy_of_its_own_file_loads(tmp_path):
    policy = RecurrentPPO(
        "MlpLstmPolicy", echo(), policy_kwargs=SMALL | dict(shared_lstm=True, enable_critic_lstm=False)
    ).policy
    policy.save(tmp_path / "policy")
    again = MlpLstmPolicy.load(tmp_path / "policy", device="cpu")
    assert again.critic_core is None
    for name, weight in policy.state_dict().items():
        assert again.state_dict()[name].equal(weight.cpu())


# What environments and modules may do


class Caches(torch.nn.Module):
    """Caches a tensor at its first use, and uses it in training: an inference tensor would fail there."""

    def __init__(self, dim):
        super().__init__()
        self.linear, self.mean = torch.nn.Linear(dim, 4), None

    def forward(self, x):
        if self.mean is None:
            self.mean = x.mean(0)
        return self.linear(x - self.mean)


def test_a_module_may_cache_what_it_computed_in_a_rollout():
    class Extractor(BaseFeaturesExtractor):
        def __init__(self, observation_space):
            super().__init__(observation_space, 4)
            self.layer = Caches(3)

        def forward(self, observations):
            return self.layer(observations)

    kwargs = dict(core="gru", features_extractor_class=Extractor)
    RecurrentPPO(MlpMemoryPolicy, echo(VECTOR), n_steps=8, batch_size=8, policy_kwargs=kwargs).learn(32)


@pytest.mark.parametrize("plain", [True, False], ids=["known modules", "a user's module"])
def test_a_rollout_gives_no_inference_tensors_away(plain):
    modes, found = [], []

    class Watch(BaseCallback):
        def _on_step(self):
            values = self.locals
            states = values["lstm_states"]
            found.extend([values["actions"], values["values"], values["log_probs"], *states.pi, *states.vf])
            return True

    class Mine(torch.nn.Tanh):
        def forward(self, x):
            modes.append(torch.is_inference_mode_enabled())
            return super().forward(x)

    kwargs = dict(core="gru", encoder=[4], activation_fn=torch.nn.Tanh if plain else Mine)
    model = RecurrentPPO(MlpMemoryPolicy, echo(VECTOR), n_steps=8, batch_size=8, policy_kwargs=kwargs)
    assert Acting(model.policy).infers == plain
    model.learn(16, callback=Watch())
    assert not any(modes)
    tensors = [value for value in found if isinstance(value, torch.Tensor)]
    assert len(tensors) >= 8 * 6
    assert not any(tensor.is_inference() for tensor in tensors)
    handle = model.policy.core.register_forward_hook(print)
    assert not Acting(model.policy).infers
    handle.remove()


class Simulator(VecEnv):
    """What training needs of a ``VecEnv`` and no more, as people write it around simulators."""

    def __init__(self, n_envs=3, copies=True):
        super().__init__(n_envs, VECTOR, ACTIONS["Discrete"])
        self.generator, self.time, self.copies = np.random.default_rng(0), np.arange(n_envs), copies
        self.last = np.zeros((n_envs, 3), np.float32)

    def draw(self):
        return self.generator.normal(size=self.last.shape).astype(np.float32)

    def reset(self):
        return self.draw()

    def step_async(self, actions):
        pass

    def step_wait(self):
        self.time += 1
        done = self.time % 5 == 0
        self.last[:] = 3 * self.draw()
        seen = np.where(done[:, None], self.draw(), self.last)
        last = self.last.copy() if self.copies else self.last
        cut = [{"terminal_observation": last[i], "TimeLimit.truncated": True} if done[i] else {} for i in range(self.num_envs)]
        return seen, np.zeros(self.num_envs, np.float32), done, cut

    def close(self):
        pass

    def unknown(self, name):
        raise NotImplementedError(name)

    def get_attr(self, attr_name, indices=None):
        return [None] * self.num_envs if attr_name == "render_mode" else self.unknown(attr_name)

    def set_attr(self, attr_name, value, indices=None):
        raise NotImplementedError

    def env_method(self, method_name, *args, indices=None, **kwargs):
        raise NotImplementedError

    def env_is_wrapped(self, wrapper_class, indices=None):
        return [False] * self.num_envs


class Stub(Simulator):
    """Answers None to every question."""

    def unknown(self, name):
        return [None] * self.num_envs

    def env_method(self, method_name, *args, indices=None, **kwargs):
        return None


class Property(Simulator):
    """Has an attribute of this name that is no method."""

    def unknown(self, name):
        return [np.ones(3, bool)] * self.num_envs

    def env_method(self, method_name, *args, indices=None, **kwargs):
        return [np.ones(3, bool)(*args)]


class OtherSize(Simulator):
    """Has masks of other actions."""

    def unknown(self, name):
        return [lambda: np.ones(7, bool)] * self.num_envs

    def env_method(self, method_name, *args, indices=None, **kwargs):
        return [np.ones(7, bool)] * self.num_envs


@pytest.mark.parametrize("env", [Simulator, Stub, Property, OtherSize])
def test_whatever_an_environment_answers_to_unknown_names_it_is_trained_without_masks(env):
    settings = dict(n_steps=8, batch_size=8, n_epochs=1, policy_kwargs=dict(core="gru"))
    model = RecurrentPPO(MlpMemoryPolicy, env(), **settings).learn(48)
    assert model.rollout_buffer.num_masked == 0
    assert len(evaluate_episodes(model, env(), 3).returns) == 3  # asks for masks as well
    with pytest.raises(UsageError, match=r"use_masking needs an env whose action_masks\(\) returns 3 truths"):
        RecurrentPPO(MlpMemoryPolicy, env(), use_masking=True, **settings).learn(48)


@pytest.mark.parametrize("previous", [False, True])
def test_last_observations_may_be_overwritten_by_the_next_step(previous):
    found = []
    for copies in (True, False):
        env = PreviousActionReward(Simulator(copies=copies)) if previous else Simulator(copies=copies)
        policy = "MultiInputMemoryPolicy" if previous else "MlpMemoryPolicy"
        settings = dict(n_steps=16, batch_size=16, n_epochs=1, seed=0, policy_kwargs=dict(core="gru"))
        found.append(RecurrentPPO(policy, env, **settings).learn(48).rollout_buffer.rewards.copy())
    assert np.abs(found[0]).max() > 0.01  # rewards of 0, and the values of last observations
    np.testing.assert_array_equal(*found)


class Broken(Echo):
    """Returns one number that is not finite."""

    def __init__(self, what):
        super().__init__(VECTOR, ACTIONS["Discrete"])
        self.what, self.total = what, 0

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        self.total += 1
        if self.total == 20:
            value = float("inf") if self.what == "infinite reward" else float("nan")
            if "reward" in self.what:
                reward = value
            else:
                observation = np.full_like(observation, value)
        return observation, reward, terminated, truncated, info


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("reward", r"the reward of environment 0 after 19 steps \(step 3 of the rollout\) was nan: training stopped"),
        ("infinite reward", "the reward of environment 0 after 19 steps .* was inf"),
        ("observation", r"the observation of environment 0 after 20 steps \(step 4 of the rollout\) was nan"),
    ],
)
@pytest.mark.parametrize("checked", [True, False], ids=["checked", "unchecked"])  # torch's compiler unchecks distributions
@pytest.mark.parametrize("algorithm", [RecurrentPPO, StockRecurrentPPO], ids=["ours", "stock"])
def test_a_number_that_is_not_finite_stops_training_with_a_diagnosis(what, message, checked, algorithm, monkeypatch):
    if algorithm is StockRecurrentPPO and not checked and what == "observation":
        message = "the observation of environment 0 after .* was nan"
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", checked)
    model = algorithm(MlpMemoryPolicy, Broken(what), n_steps=16, batch_size=16, policy_kwargs=dict(core="gru"))
    with pytest.raises(NonFiniteError, match=message):
        model.learn(320)
    assert all(torch.isfinite(parameter).all() for parameter in model.policy.parameters())


@pytest.mark.parametrize("algorithm", [RecurrentPPO, StockRecurrentPPO], ids=["ours", "stock"])
def test_an_update_that_diverges_is_undone(algorithm):
    model = algorithm(MlpMemoryPolicy, echo(), n_steps=16, batch_size=16, policy_kwargs=dict(core="gru"), seed=0).learn(64)
    before = {name: weight.clone() for name, weight in model.policy.state_dict().items()}
    model.ent_coef = 1e38
    model.vf_coef = 1e38
    what = (
        "loss became .* at minibatch 0 of the update"
        if algorithm is RecurrentPPO
        else "(a parameter of the policy became not finite|.*loss became nan)"
    )
    with pytest.raises(NonFiniteError, match=f"{what} after 96 steps"):
        model.learn(64, reset_num_timesteps=False)
    for name, weight in model.policy.state_dict().items():
        assert weight.equal(before[name])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(gamma=2), "gamma must be a finite number at least 0 and at most 1, got 2"),
        (dict(n_steps=0), "n_steps must be a whole number of at least 1, got 0"),
        (dict(clip_range_vf=-1.0), "clip_range_vf must be a finite number above 0, got -1"),
        (dict(sde_sample_freq=0.5), "sde_sample_freq must be a whole number of at least -1, got 0.5"),
    ],
)
def test_the_stock_class_of_the_command_line_checks_its_settings(settings, message):
    with pytest.raises(UsageError, match=message):
        StockRecurrentPPO("MlpLstmPolicy", echo(), **settings)


def test_sixteen_combinations_of_sizes_are_accepted():
    generator, trained = np.random.default_rng(0), []
    for _ in range(16):
        n_envs, n_steps, batch_size = (int(generator.integers(1, most)) for most in (6, 40, 200))
        settings = dict(n_steps=n_steps, batch_size=batch_size, n_epochs=1, device="cpu", policy_kwargs=SMALL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = RecurrentPPO("MlpLstmPolicy", echo(n_envs=n_envs), **settings).learn(2 * n_envs * n_steps)
        trained.append(model.num_timesteps == 2 * n_envs * n_steps)
    assert all(trained)
    assert len(trained) == 16


def test_statistics_of_episodes_are_copied():
    class Same(Echo):
        statistics = dict(r=0.0, l=0, t=0.0)

        def step(self, action):
            observation, reward, terminated, truncated, info = super().step(action)
            if terminated or truncated:
                self.statistics["r"] += 1
                info = info | dict(episode=self.statistics)
            return observation, reward, terminated, truncated, info

    model = RecurrentPPO(MlpMemoryPolicy, DummyVecEnv([lambda: Same(VECTOR, ACTIONS["Discrete"])]), n_steps=14, batch_size=14)
    model.learn(28)
    assert [info["r"] for info in model.ep_info_buffer] == [1, 2, 3, 4]
