"""
Whoever has a script for ``sb3_contrib.RecurrentPPO`` changes its import, and nothing else.

The first part tests what sb3-contrib's own tests of recurrent policies test, in our words.
"""

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
from stable_baselines3.common.vec_env import DummyVecEnv
from test_policies import ACTIONS, OBSERVATIONS, VECTOR, Echo, echo

from rmc_rl import MlpMemoryPolicy, RecurrentPPO
from rmc_rl.agents.lstm_policies import CnnLstmPolicy, MlpLstmPolicy
from rmc_rl.agents.rollout import Acting
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
def test_a_number_that_is_not_finite_stops_training_with_a_diagnosis(what, message, checked, monkeypatch):
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", checked)
    model = RecurrentPPO(MlpMemoryPolicy, Broken(what), n_steps=16, batch_size=16, policy_kwargs=dict(core="gru"))
    with pytest.raises(NonFiniteError, match=message):
        model.learn(320)
    assert all(torch.isfinite(parameter).all() for parameter in model.policy.parameters())


def test_an_update_that_diverges_is_undone():
    model = RecurrentPPO(MlpMemoryPolicy, echo(), n_steps=16, batch_size=16, policy_kwargs=dict(core="gru"), seed=0).learn(64)
    before = {name: weight.clone() for name, weight in model.policy.state_dict().items()}
    model.ent_coef = 1e38
    model.vf_coef = 1e38
    with pytest.raises(NonFiniteError, match=r"loss became .* at minibatch 0 of the update after 96 steps"):
        model.learn(64, reset_num_timesteps=False)
    for name, weight in model.policy.state_dict().items():
        assert weight.equal(before[name])


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
