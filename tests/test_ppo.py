"""Our RecurrentPPO: what it computes, against hand-computed numbers, closed forms and the stock class."""

import contextlib

import gymnasium
import numpy as np
import pytest
import sb3_contrib
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecNormalize
from test_policies import ACTIONS, OBSERVATIONS, SMALL, VECTOR, Echo, echo

from rmc_rl import CoreScalars, MlpMemoryPolicy, RecurrentPPO, make_vec
from rmc_rl.agents.cores import core_names
from rmc_rl.agents.packing import pack
from rmc_rl.agents.policies import CRITICS
from rmc_rl.agents.sequences import SequenceBuffer
from rmc_rl.envs.previous_action_reward import PreviousActionReward
from rmc_rl.envs.vec_env import SameStepVecEnv
from rmc_rl.envs.worlds.copy import CopyWorld
from rmc_rl.errors import UsageError


def agent(env=None, policy=MlpMemoryPolicy, policy_kwargs=SMALL, algorithm=RecurrentPPO, **kwargs):
    defaults = dict(n_steps=16, batch_size=16, n_epochs=2, seed=0, device="cpu")
    return algorithm(policy, env or echo(), policy_kwargs=policy_kwargs, **(defaults | kwargs))


def rollout(model):
    """One rollout, without training on it; it goes on where the one before ended."""
    _, callback = model._setup_learn(1, reset_num_timesteps=False)
    assert model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    return model.rollout_buffer


# Sequences and rows


def test_pieces_of_episodes_in_rows():
    # sequence 0 continues an episode for 2 steps, then has episodes of 1 and 3; sequence 1 has episodes of 4 and 2
    starts = np.array([0, 0, 1, 1, 0, 0, 1, 0, 0, 0, 1, 0], dtype=bool)
    layout = pack(starts, np.array([6, 6]))
    assert layout.steps.shape == (4, 3)
    rows = [(layout.steps[:, r].tolist(), layout.episode_starts[:, r].tolist()) for r in range(3)]
    assert rows[0] == ([0, 1, 10, 11], [0, 0, 1, 0])  # the last episode of sequence 1 fills the rest
    assert rows[1] == ([6, 7, 8, 9], [1, 0, 0, 0])
    assert rows[2] == ([3, 4, 5, 2], [1, 0, 0, 1])
    assert layout.sequences[0] == 0
    assert layout.steps.flatten()[layout.places].tolist() == list(range(12))


@pytest.mark.parametrize("chance", [0, 0.05, 0.5, 1])
def test_rows_hold_every_step_once_and_in_order(chance):
    rng = np.random.default_rng(0)
    for _ in range(20):
        lengths = rng.integers(1, 30, size=rng.integers(1, 9))
        starts = rng.random(lengths.sum()) < chance
        layout = pack(starts, lengths)
        assert layout.steps.flatten()[layout.places].tolist() == list(range(len(starts)))
        rows, step = len(layout.sequences), 0
        for sequence, length in enumerate(lengths):
            for t in range(length):
                time, row = divmod(int(layout.places[step]), rows)
                assert layout.episode_starts[time, row] == starts[step]
                if not starts[step] and t > 0:  # the step before it stands before it
                    assert layout.places[step - 1] == (time - 1) * rows + row
                elif not starts[step]:
                    assert (time, int(layout.sequences[row])) == (0, sequence)
                step += 1


@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.parametrize("sequence_length", [16, 5, 4, 1])
def test_sequences_are_evaluated_as_they_were_acted(critic, sequence_length):
    model = agent(policy_kwargs=SMALL | dict(critic=critic), sequence_length=sequence_length)
    rollout(model)
    buffer = rollout(model)  # one that begins in the middle of episodes
    assert not buffer.episode_starts[0].all()
    assert 0 < buffer.episode_starts[1:].sum() < buffer.episode_starts.size
    assert len(buffer.tensors.pi_states[0]) == -(-16 // sequence_length)
    seen = 0
    for batch in buffer.minibatches(16):
        values, log_prob, _ = model.policy.evaluate_sequences(batch.observations, batch.actions, batch.states, batch.layout)
        torch.testing.assert_close(values, batch.old_values, rtol=0, atol=1e-5)
        torch.testing.assert_close(log_prob, batch.old_log_prob, rtol=0, atol=1e-5)
        seen += len(values)
    assert seen == 32


@pytest.mark.parametrize("core", core_names())
def test_the_first_ratio_is_one(core):
    model = agent(policy_kwargs=dict(core=core), batch_size=32)
    rollout(model)
    buffer = rollout(model)
    (batch,) = buffer.minibatches(32)
    model.policy.set_training_mode(True)
    _, log_prob, _ = model.policy.evaluate_sequences(batch.observations, batch.actions, batch.states, batch.layout)
    torch.testing.assert_close(torch.exp(log_prob - batch.old_log_prob), torch.ones(32), rtol=0, atol=1e-5)


def test_states_are_kept_where_sequences_begin():
    model = agent(sequence_length=4)
    states = []
    forward = model.policy.forward

    def acted(obs, lstm_states, *arguments, **kwargs):
        states.append(lstm_states.pi)
        return forward(obs, lstm_states, *arguments, **kwargs)

    model.policy.forward = acted
    buffer = rollout(model)
    for chunk in range(4):
        for half, kept in zip(states[4 * chunk], buffer.tensors.pi_states, strict=True):
            assert kept[chunk].equal(half)
    assert buffer.tensors.vf_states is buffer.tensors.pi_states
    separate = agent(policy_kwargs=SMALL | dict(critic="separate")).rollout_buffer.tensors
    assert separate.vf_states is not separate.pi_states


def test_storage_is_small():
    space = spaces.Box(0, 255, (1, 84, 84), np.uint8)
    policy, arguments = OBSERVATIONS["image"][0], dict(n_steps=8, batch_size=8, policy_kwargs=dict(core="lstm"))
    ours, stock = (agent(echo(space), policy, algorithm=a, **arguments).rollout_buffer for a in ALGORITHMS)
    assert ours.tensors.observations.dtype == torch.uint8

    def size_beside_observations(buffer):
        stored = [*vars(buffer).values(), *getattr(buffer, "tensors", ())]
        parts = [part for value in stored for part in (value if isinstance(value, tuple) else (value,))]
        sizes = {id(part): part.nbytes for part in parts if hasattr(part, "nbytes")}
        return sum(sizes.values()) - buffer.observations.nbytes

    assert size_beside_observations(ours) < 0.2 * size_beside_observations(stock)


# Advantages and values


def test_advantages_against_a_hand_computation():
    buffer = SequenceBuffer(3, 2, 3, VECTOR, ACTIONS["Discrete"], agent()._last_lstm_states, 0, torch.device("cpu"), 0.5, 0.5)
    buffer.rewards[:] = [[1, 0], [2, 0], [3, 1]]  # arrays that share memory with the tensors
    buffer.values[:] = [[0.5, 1], [1, 2], [2, 3]]
    buffer.episode_starts[:] = [[1, 0], [0, 1], [0, 0]]
    buffer.compute_returns_and_advantage(torch.tensor([4.0, 5.0]), np.array([False, True]))
    # environment 0, no end: deltas 1 + 0.5 * 1 - 0.5 = 1, 2 + 0.5 * 2 - 1 = 2, 3 + 0.5 * 4 - 2 = 3
    # environment 1, ends after steps 0 and 2: 0 - 1 = -1, 0 + 0.5 * 3 - 2 = -0.5, 1 - 3 = -2
    expected = [[1 + 0.25 * (2 + 0.25 * 3), -1], [2 + 0.25 * 3, -0.5 + 0.25 * -2], [3, -2]]
    np.testing.assert_allclose(buffer.advantages, expected, rtol=1e-6)
    np.testing.assert_allclose(buffer.returns, buffer.advantages + buffer.values)


ALGORITHMS = [RecurrentPPO, sb3_contrib.RecurrentPPO]


@pytest.mark.parametrize("observation", ["Box", "Dict"])
@pytest.mark.parametrize("critic", CRITICS)
def test_a_rollout_equals_that_of_the_stock_class(critic, observation):
    policy, space = OBSERVATIONS[observation]
    found = []
    for algorithm in ALGORITHMS:
        model = agent(echo(space), policy, SMALL | dict(critic=critic), algorithm)
        for _ in range(2):
            buffer = rollout(model)
            names = ("rewards", "values", "log_probs", "advantages", "returns", "episode_starts", "actions")
            numbers = {name: torch.as_tensor(getattr(buffer, name)).clone().numpy() for name in names}
            found.append(numbers)
    for mine, theirs in zip(found[:2], found[2:], strict=True):
        for name, numbers in mine.items():
            np.testing.assert_allclose(numbers, theirs[name], atol=1e-5, err_msg=name)
        assert mine["episode_starts"].any()
        assert (mine["rewards"] != 1).any()  # Echo gives 1 at each step: the rest is the value of episodes that were cut off


@pytest.mark.parametrize("kwargs", [{}, dict(clip_range_vf=0.1, ent_coef=0.1, vf_coef=0.3), dict(normalize_advantage=False)])
def test_an_update_equals_that_of_the_stock_class(kwargs, monkeypatch):
    class Endless(Echo):
        def step(self, action):
            observation, _, _, _, info = super().step(action)
            return observation, float(observation[0]), False, False, info

    weights, logs = [], []
    for algorithm in ALGORITHMS:
        env = make_vec_env(lambda: Endless(VECTOR, ACTIONS["Box"]), 3)
        model = agent(env, batch_size=48, n_epochs=3, algorithm=algorithm, learning_rate=1e-2, **kwargs)
        with monkeypatch.context() as patch:
            # where it begins its minibatch is drawn at random there, which cuts a sequence in two
            patch.setattr(np.random, "randint", lambda *_: 0)
            model.learn(96)
        weights.append(model.policy.state_dict())
        logs.append(dict(model.logger.name_to_value))
    for name, weight in weights[0].items():
        torch.testing.assert_close(weight, weights[1][name], rtol=0, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    assert logs[0].keys() == {*logs[1], "train/gradient_norm"}
    assert logs[0]["train/clip_fraction"] > 0.1  # so clipping makes a difference
    for name, value in logs[1].items():
        assert logs[0][name] == pytest.approx(value, abs=1e-4), name


def test_the_weight_of_the_entropy_may_fall(tmp_path):
    model = agent(n_steps=8, batch_size=24, n_epochs=1, ent_coef=lambda remaining: 0.4 * remaining)
    weights, losses = [], []
    loss = model._loss

    def record(batch, *clip_ranges):
        total, found = loss(batch, *clip_ranges)
        policy_and_value = found["policy_gradient_loss"] + model.vf_coef * found["value_loss"]
        losses.append(((total - policy_and_value) / found["entropy_loss"]).item())
        weights.append(0.4 * model._current_progress_remaining)
        return total, found

    model._loss = record
    model.learn(4 * 8 * model.n_envs)
    assert losses == pytest.approx(weights, abs=1e-4)
    assert len(losses) == 4
    assert losses[0] == pytest.approx(0.3, abs=1e-4)  # after the first of four rollouts
    assert model.logger.name_to_value["train/ent_coef"] == pytest.approx(0)
    del model._loss
    model.save(tmp_path / "model")
    assert type(model).load(tmp_path / "model").ent_coef(0.5) == pytest.approx(0.2)


class Probe(gymnasium.Env):
    """Rewards that do not depend on what is done; ``episode`` lists observation and reward of each step."""

    observation_space, action_space = spaces.Box(-1, 1, (1,), np.float32), spaces.Discrete(2)

    def __init__(self, episode):
        self.make_episode = episode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.time = self.make_episode(self.np_random), 0
        return self.observe(), {}

    def observe(self):
        at = min(self.time, len(self.episode) - 1)
        return np.array([self.episode[at][0]], dtype=np.float32)

    def step(self, action):
        reward = self.episode[self.time][1]
        self.time += 1
        return self.observe(), reward, self.time == len(self.episode), False, {}


def probe(episode, timesteps, **kwargs):
    env = make_vec_env(lambda: Probe(episode), 8, seed=0)
    arguments = dict(n_steps=32, batch_size=64, n_epochs=4, learning_rate=3e-3, gamma=0.5, policy_kwargs=dict(core="gru"))
    return agent(env, **(arguments | kwargs)).learn(timesteps)


def value(model, *observations):
    """The value of the last of these observations of an episode."""
    looks = torch.tensor(observations, dtype=torch.float32).view(-1, 1, 1)
    states, starts = model.policy.initial_states(1), torch.ones(1)
    for t in range(len(looks)):
        with torch.no_grad():
            _, found, _, states = model.policy(looks[t], states, starts * (t == 0))
    return found.item()


def test_probe_a_constant_reward():
    assert value(probe(lambda _: [(0, 1)], 2048), 0) == pytest.approx(1, abs=0.1)


def test_probe_a_reward_that_is_the_observation():
    def episode(rng):
        sign = rng.choice([-1, 1])
        return [(sign, sign)]

    model = probe(episode, 4096)
    assert value(model, 1) == pytest.approx(1, abs=0.1)
    assert value(model, -1) == pytest.approx(-1, abs=0.1)


def test_probe_a_discounted_reward():
    model = probe(lambda _: [(0, 0), (1, 1)], 6144)
    assert value(model, 0) == pytest.approx(0.5, abs=0.1)  # gamma
    assert value(model, 0, 1) == pytest.approx(1, abs=0.1)


def test_probe_a_cue_now_and_a_reward_later():
    def episode(rng):
        sign = rng.choice([-1, 1])
        return [(sign, 0), (0, 0), (0, sign)]

    model = probe(episode, 24_576)
    for sign in (-1, 1):  # the last observation alone says nothing: a memoryless critic says 0
        assert value(model, sign, 0, 0) == pytest.approx(sign, abs=0.2)
        assert value(model, sign) == pytest.approx(0.25 * sign, abs=0.15)
    assert value(probe(episode, 6144, policy_kwargs=dict(core="memoryless")), 1, 0, 0) == pytest.approx(0, abs=0.2)


# As a class of SB3


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_spaces(observation, action):
    policy, space = OBSERVATIONS[observation]
    model = agent(echo(space, ACTIONS[action]), policy)
    before = {name: weight.clone() for name, weight in model.policy.state_dict().items()}
    model.learn(64)
    changed = [name for name, weight in model.policy.state_dict().items() if not weight.equal(before[name])]
    assert any(name.startswith("core.") for name in changed)


@pytest.mark.parametrize("space", [spaces.Box(-1, 1, (2, 2), np.float32), spaces.Box(0, 5, (2,), np.uint8)])
def test_actions_of_a_box_are_kept_as_they_were_sampled(space):
    class Any(Echo):
        def step(self, action):
            return super().step(action.astype(space.dtype))

    model = agent(make_vec_env(lambda: Any(VECTOR, space), 2), n_epochs=1, batch_size=32)
    model.learn(32)
    assert model.logger.name_to_value["train/approx_kl"] == pytest.approx(0, abs=1e-6)
    assert (model.rollout_buffer.actions % 1).any()


@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.parametrize("core", ["rims", "brims", "gru"])
def test_one_environment_and_an_initial_state_that_is_learned(core, critic):
    learned = dict(core_kwargs=dict(initial_state="learned")) if core == "gru" else {}
    agent(echo(n_envs=1), policy_kwargs=dict(core=core, critic=critic, **learned)).learn(48)


@pytest.mark.parametrize("squash", [False, True])
def test_gsde(squash):
    class Within(Echo):
        def step(self, action):
            seen.append(action)
            return super().step(action)

    seen = []
    env = make_vec_env(lambda: Within(VECTOR, ACTIONS["Box"]), 2)
    agent(env, policy_kwargs=SMALL | dict(squash_output=squash, log_std_init=1.0), use_sde=True, sde_sample_freq=4).learn(64)
    if squash:
        assert np.abs(seen).max() > 1  # scaled to the space, which ends at 2


def test_vec_normalize_eval_callback_and_target_kl(tmp_path):
    env, eval_env = VecNormalize(make_vec("Pendulum-v1", 2)), VecNormalize(make_vec("Pendulum-v1", 2), training=False)
    model = agent(env, target_kl=1e-9, n_epochs=5)
    callback = EvalCallback(eval_env, eval_freq=16, n_eval_episodes=2, best_model_save_path=str(tmp_path), verbose=0)
    model.learn(64, callback=callback)
    assert model._n_updates < 10  # stopped by the KL divergence
    assert (tmp_path / "best_model.zip").exists()


def test_same_seed_same_numbers():
    first, second = (agent(make_vec("rmc_rl/Copy-v0", 2, seed=0)).learn(64) for _ in range(2))
    for name, weight in first.policy.state_dict().items():
        assert weight.equal(second.policy.state_dict()[name]), name


def test_successes_are_counted():
    class Success(Echo):
        def step(self, action):
            observation, reward, terminated, truncated, info = super().step(action)
            return observation, reward, terminated, truncated, info | dict(is_success=terminated)

    model = agent(make_vec_env(lambda: Success(VECTOR, ACTIONS["Discrete"]), 2)).learn(64)
    assert len(model.ep_success_buffer) == len(model.ep_info_buffer) == 8
    assert sum(model.ep_success_buffer) == 4  # every other episode of Echo is cut off


def test_a_callback_can_end_training():
    model = agent()
    model.learn(640, callback=lambda local, _: local["self"].num_timesteps < 40)
    assert model.num_timesteps == 40


@pytest.mark.parametrize(("saved", "loaded"), [ALGORITHMS, ALGORITHMS[::-1]])
def test_files_load_in_either_class(saved, loaded, tmp_path):
    model = agent(make_vec("rmc_rl/Copy-v0", 2, seed=0), algorithm=saved).learn(64)
    model.save(tmp_path / "model")
    other = loaded.load(tmp_path / "model", env=make_vec("rmc_rl/Copy-v0", 2, seed=1), device="cpu")
    assert type(other) is loaded
    observation = model.get_env().reset()
    for each, again in zip(model.predict(observation)[1], other.predict(observation)[1], strict=True):
        np.testing.assert_array_equal(each, again)
    other.learn(64, reset_num_timesteps=False)
    assert other.num_timesteps == 128
    evaluate_policy(other, other.get_env(), 2)


def test_sequence_length_is_saved(tmp_path):
    agent(sequence_length=4).save(tmp_path / "model")
    assert RecurrentPPO.load(tmp_path / "model", env=echo(), device="cpu").rollout_buffer.sequence_length == 4


@pytest.mark.parametrize(
    ("kwargs", "length"),
    [
        ({}, 16),
        (dict(batch_size=32), 16),
        (dict(batch_size=None), 16),
        (dict(batch_size=4096), 16),
        (dict(batch_size=8), 8),
        (dict(n_steps=12, batch_size=8), 6),
        (dict(n_steps=50, batch_size=64), 50),
        (dict(n_steps=101, batch_size=64), 51),
        (dict(sequence_length=4), 4),
        (dict(sequence_length=5), 5),
        (dict(sequence_length=20), 16),
        (dict(sequence_length=16, batch_size=8), 8),
    ],
)
@pytest.mark.filterwarnings("ignore:gradients reach back", "ignore:batch_size", "ignore:sequence_length")
def test_sequence_length(kwargs, length):
    model = agent(**{name: None if value is None else np.int64(value) for name, value in kwargs.items()})
    assert model.rollout_buffer.sequence_length == length
    seen = []
    for algorithm in (model, agent(algorithm=RecurrentPPO, **kwargs)):
        rollout(algorithm)
        batches = list(algorithm.rollout_buffer.minibatches(algorithm.batch_size))
        seen += [sum(len(batch.returns) for batch in batches)]
        assert all(len(batch.returns) <= (kwargs.get("batch_size", 16) or 32) for batch in batches)
    assert seen == [2 * kwargs.get("n_steps", 16)] * 2


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(batch_size=8), "gradients reach back 8 steps only, because batch_size is 8: batch_size=16, or a multiple"),
        (dict(sequence_length=32), "sequence_length 32 becomes 16, because n_steps is 16 and batch_size 16"),
        (
            dict(n_steps=50, batch_size=64),
            r"batch_size 64 does not divide a rollout \(n_steps 50 \* 2 .*have 50",
        ),
    ],
)
def test_sizes_that_train_otherwise_than_expected_are_warned_about(kwargs, message):
    with pytest.warns(UserWarning, match=message):
        agent(**kwargs, n_epochs=1).learn(1)


@pytest.mark.filterwarnings("ignore:gradients reach back", "ignore:batch_size")
def test_any_sizes_train_load_into_one_copy_and_train_on(tmp_path):
    rng = np.random.default_rng(0)
    for _ in range(16):
        n_envs, n_steps = int(rng.integers(1, 5)), int(rng.integers(2, 40))
        batch_size = None if rng.random() < 0.1 else int(rng.integers(1, 100))
        model = agent(echo(n_envs=n_envs), n_steps=n_steps, batch_size=batch_size, n_epochs=1).learn(1)
        assert model.num_timesteps == n_envs * n_steps
        model.save(tmp_path / "model")
        other = RecurrentPPO.load(tmp_path / "model", env=echo(n_envs=1), device="cpu")
        assert other.learn(1, reset_num_timesteps=False).num_timesteps == n_envs * n_steps + n_steps
        stock = sb3_contrib.RecurrentPPO.load(tmp_path / "model", env=echo(n_envs=3), device="cpu")
        assert stock.predict(stock.get_env().reset())[0].shape == (3,)


def test_sizes_are_those_of_the_attributes_when_learn_begins():
    model = agent().learn(32)
    model.n_steps, model.batch_size, model.gamma = 8, 24, 0.5
    model.set_env(echo(n_envs=3))
    model.learn(24, reset_num_timesteps=False)
    assert model.num_timesteps == 32 + 24
    assert model.rollout_buffer.rewards.shape == (8, 3)
    model.n_steps = 0
    with pytest.raises(UsageError, match="n_steps must be a whole number of at least 1, got 0"):
        model.learn(24)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(sequence_length=0), "sequence_length must be a whole number of at least 1, got 0"),
        (dict(batch_size=0), "batch_size must be a whole number of at least 1, got 0"),
        (dict(n_steps=1.5), "n_steps must be a whole number of at least 1, got 1.5"),
        (dict(gamma=1.5), "gamma must be a finite number at least 0 and at most 1, got 1.5"),
        (dict(ent_coef=float("nan")), "ent_coef must be a finite number, got nan"),
        (dict(clip_range_vf=-1), "clip_range_vf must be a finite number above 0, got -1"),
        (dict(n_step=16), "unknown argument of RecurrentPPO 'n_step'; did you mean 'n_steps'?"),
        (dict(policy="MlpMemoryPolcy"), "unknown policy 'MlpMemoryPolcy'; did you mean 'MlpMemoryPolicy'?"),
        (
            dict(policy=ActorCriticPolicy, policy_kwargs={}),
            "policy must be one of .*, got 'ActorCriticPolicy'",
        ),
        (dict(policy_kwargs=dict(cor="gru")), "unknown argument of MlpMemoryPolicy 'cor'; did you mean 'core'?"),
        (
            dict(policy_kwargs=dict(features_extractor_kwargs=dict(dim=3))),
            "unknown argument of FlattenExtractor 'dim'",
        ),
    ],
)
def test_mistakes(kwargs, message):
    with pytest.raises(ValueError, match=message):
        agent(**kwargs)


def test_policies_by_name():
    assert type(agent(policy="MlpMemoryPolicy").policy) is MlpMemoryPolicy


@pytest.mark.parametrize("has", [True, False])
def test_bfloat16_without_instructions_for_it_is_warned_about(has, monkeypatch):
    monkeypatch.setattr("rmc_rl.compat.cpu_has_bfloat16", lambda: has)
    expected = (
        contextlib.nullcontext() if has else pytest.warns(UserWarning, match="this processor has no bfloat16 instructions")
    )
    with expected:
        agent(policy_kwargs=SMALL | dict(amp="bf16"))


# Action masks


class Masked(Echo):
    """Some actions are invalid: which, changes with time."""

    def action_masks(self):
        size = spaces.flatdim(self.action_space) * (2 if isinstance(self.action_space, spaces.MultiBinary) else 1)
        masks = np.ones(size, dtype=bool)
        masks[self.time % 2] = False
        return masks

    def step(self, action):
        first = action if isinstance(self.action_space, spaces.Discrete) else action[0]
        assert first != self.time % 2, "an invalid action was taken"
        return super().step(action)


@pytest.mark.parametrize("action", ["Discrete", "MultiDiscrete", "MultiBinary"])
def test_invalid_actions_are_never_taken(action):
    env = make_vec_env(lambda: Masked(VECTOR, ACTIONS[action]), 2)
    model = agent(env, ent_coef=0.1).learn(640)
    masks = np.array(env.env_method("action_masks"))
    observation = env.reset()
    for deterministic in (False, True):
        actions, _ = model.predict(np.repeat(observation, 50, axis=0), None, None, deterministic, np.repeat(masks, 50, axis=0))
        first = actions if action == "Discrete" else actions[:, 0]
        assert masks[0, first].all()


def test_masked_actions_are_evaluated_with_their_masks():
    model = agent(make_vec_env(lambda: Masked(VECTOR, ACTIONS["Discrete"]), 2), batch_size=32)
    (batch,) = rollout(model).minibatches(32)
    _, log_prob, entropy = model.policy.evaluate_sequences(
        batch.observations, batch.actions, batch.states, batch.layout, batch.action_masks
    )
    torch.testing.assert_close(log_prob, batch.old_log_prob, rtol=0, atol=1e-5)
    assert (entropy <= np.log(2) + 1e-6).all()  # two of three are left
    model.n_epochs = 1
    model.train()
    assert model.logger.name_to_value["train/approx_kl"] == pytest.approx(0, abs=1e-6)  # in the first minibatch, the only one


def test_masks_of_an_environment_set_later(tmp_path):
    agent(echo()).save(tmp_path / "model")
    model = RecurrentPPO.load(tmp_path / "model", device="cpu")
    model.set_env(make_vec_env(lambda: Masked(VECTOR, ACTIONS["Discrete"]), 2))
    model.learn(64)  # Masked refuses invalid actions


def test_masks_need_discrete_actions():
    agent(make_vec_env(lambda: Masked(VECTOR, ACTIONS["Box"]), 2)).learn(32)  # its masks are ignored
    policy = agent(echo(action_space=ACTIONS["Box"])).policy
    with pytest.raises(UsageError, match="action masks need discrete actions, got Box"):
        policy.predict(np.zeros((2, 3)), action_masks=np.ones((2, 4)))


def test_masks_can_be_switched_off_and_demanded():
    env = make_vec_env(lambda: Masked(VECTOR, ACTIONS["Discrete"]), 2)
    assert agent(env).learn(32).rollout_buffer.num_masked == 3
    with pytest.raises(AssertionError):  # Masked refuses invalid actions
        agent(env, use_masking=False).learn(320)
    with pytest.raises(UsageError, match=r"use_masking needs an env whose action_masks\(\) returns 3 truths"):
        agent(use_masking=True).learn(32)


# The previous action and reward


@pytest.mark.parametrize("action", ACTIONS)
def test_previous_action_and_reward(action):
    space = ACTIONS[action]
    env = PreviousActionReward(make_vec_env(lambda: Echo(VECTOR, space), 2))
    observation = env.reset()
    assert env.observation_space.contains({name: part[0] for name, part in observation.items()})
    assert not observation["previous"].any()
    space.seed(0)
    for t in range(1, 8):
        actions = np.array([space.sample() for _ in range(2)])
        observation, rewards, dones, infos = env.step(actions)
        encoded = np.array([spaces.flatten(space, a) for a in actions])
        expected = np.concatenate([encoded, rewards[:, None]], axis=1)
        if t < 7:
            np.testing.assert_allclose(observation["previous"], expected)
        else:  # an episode ends
            assert dones.all()
            assert not observation["previous"].any()
            np.testing.assert_allclose(infos[0]["terminal_observation"]["previous"], expected[0])


def test_previous_action_and_reward_beside_other_keys():
    env = PreviousActionReward(echo(OBSERVATIONS["Dict"][1]))
    assert set(env.observation_space.spaces) == {"a", "b", "c", "previous"}
    agent(env, OBSERVATIONS["Dict"][0]).learn(64)
    with pytest.raises(UsageError, match="observations must not have a key 'previous' yet"):
        PreviousActionReward(env)


# Worlds that stay on the device


class Short(CopyWorld):
    """Cuts episodes off after 4 steps."""

    truncates = True

    def _draw(self, count):
        return super()._draw(count) | {"age": torch.zeros(count)}

    def _advance(self, actions):
        rewards, terminated, _ = super()._advance(actions)
        self.age = self.age + 1
        return rewards + 0.5, terminated, (self.age == 4) & ~terminated


@pytest.mark.parametrize("world", [CopyWorld, Short])
def test_a_rollout_on_the_device_equals_one_through_the_host(world, monkeypatch):
    found = []
    for on_device in (False, True):
        monkeypatch.setattr(SameStepVecEnv, "on_device", on_device)  # here, the device is the CPU
        env = SameStepVecEnv(world(3, n_symbols=2, length=1, delay=3))
        env.seed(0)
        model = agent(env, batch_size=48)
        step, steps = env.step_async, []
        env.step_async = lambda actions, step=step, steps=steps: steps.append(actions) or step(actions)
        model.learn(48)
        buffer = rollout(model)
        assert bool(steps) != on_device
        names = ("observations", "actions", "rewards", "episode_starts", "values", "log_probs", "advantages")
        numbers = {name: getattr(buffer, name).copy() for name in names}
        found.append((numbers, [(info["r"], info["l"]) for info in model.ep_info_buffer]))
    (host, host_episodes), (device, device_episodes) = found
    for name, numbers in host.items():
        np.testing.assert_allclose(device[name], numbers, rtol=0, atol=1e-5, err_msg=name)
    assert len(host_episodes) >= 12
    np.testing.assert_allclose(device_episodes, host_episodes)


def test_a_wrapped_world_goes_through_the_host(monkeypatch):
    monkeypatch.setattr(SameStepVecEnv, "on_device", True)
    env = VecNormalize(make_vec("rmc_rl/Copy-v0", 2, seed=0), norm_obs=False)
    rewards = rollout(agent(env)).rewards
    assert rewards.max() != 1
    assert env.ret_rms.count > 1


def test_only_our_worlds_live_on_another_device():
    with pytest.raises(UsageError, match="device must be cpu for CartPole-v1, which is no world of rmc_rl"):
        make_vec("CartPole-v1", device="cuda")


@pytest.mark.cuda
def test_training_on_a_cuda_device():
    env = make_vec("rmc_rl/Copy-v0", 16, seed=0, env_kwargs=dict(n_symbols=2, length=1, delay=2), device="cuda")
    model = agent(env, device="cuda").learn(1024, callback=CoreScalars())
    assert model.rollout_buffer.tensors.observations.is_cuda
    assert len(model.ep_info_buffer) > 0
