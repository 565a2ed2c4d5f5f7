"""Imitation: the policies of RecurrentPPO trained on the answers of a world."""

import numpy as np
import pytest
import torch
from stable_baselines3.common.vec_env import VecNormalize
from test_policies import echo

from rmc_rl import Imitation, MlpMemoryPolicy, RecurrentPPO, make_vec
from rmc_rl.errors import UsageError

COPY = dict(n_symbols=3, length=1, delay=2)


def agent(env=None, core="gru", **kwargs):
    env = env or make_vec("rmc_rl/Copy-v0", 16, seed=0, env_kwargs=COPY)
    defaults = dict(n_steps=16, batch_size=64, n_epochs=2, learning_rate=1e-2, seed=0, device="cpu")
    return Imitation(MlpMemoryPolicy, env, policy_kwargs=dict(core=core, core_kwargs=dict(width=16)), **(defaults | kwargs))


@pytest.mark.parametrize("actor", ["learner", "expert"])
def test_a_memory_learns_what_it_is_told_and_no_memory_does_not(actor):
    found = {}
    for core in ("gru", "memoryless"):
        model = agent(core=core, actor=actor).learn(16 * 16 * 40)
        found[core] = model.logger.name_to_value["train/answer_probability"]
    assert found["gru"] > 0.9
    assert found["memoryless"] < 0.5  # chance is 1/3


def test_the_loss_is_the_cross_entropy_of_the_answers():
    model = agent(n_epochs=1)
    _, callback = model._setup_learn(1)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    batch = next(model.rollout_buffer.minibatches(None))
    loss, found = model._loss(batch, 0.2, None)
    known = model.known.flatten()[batch.steps]
    assert 0 < known.sum() < len(known)  # a world says where its answers matter
    _, log_prob, _ = model.policy.evaluate_sequences(batch.observations, batch.actions, batch.states, batch.layout)
    torch.testing.assert_close(found["imitation_loss"], -log_prob[known].mean())
    torch.testing.assert_close(found["answer_probability"], log_prob[known].exp().mean())
    torch.testing.assert_close(loss, found["imitation_loss"] + model.vf_coef * found["value_loss"])


def test_the_expert_acts_perfectly():
    model = agent(actor="expert").learn(16 * 16)
    assert np.mean([info["r"] for info in model.ep_info_buffer]) == 1
    learner = agent(actor="learner").learn(16 * 16)
    assert np.mean([info["r"] for info in learner.ep_info_buffer]) < 0.9


def test_answers_pass_wrappers_of_the_environment():
    env = VecNormalize(make_vec("rmc_rl/Copy-v0", 16, seed=0, env_kwargs=COPY), norm_obs=False)
    assert agent(env).learn(256).num_timesteps == 256
    previous = make_vec("rmc_rl/Copy-v0", 4, seed=0, env_kwargs=COPY, previous_action_reward=True)
    model = Imitation("MultiInputMemoryPolicy", previous, n_steps=16, batch_size=16, policy_kwargs=dict(core="gru"))
    assert model.learn(64).num_timesteps == 64


def test_it_saves_and_goes_on_by_reinforcement(tmp_path):
    model = agent(actor="expert").learn(256)
    model.save(tmp_path / "model")
    assert Imitation.load(tmp_path / "model", device="cpu").actor == "expert"
    env = make_vec("rmc_rl/Copy-v0", 4, seed=0, env_kwargs=COPY)
    assert RecurrentPPO.load(tmp_path / "model", env=env, device="cpu").learn(64).num_timesteps == 64


def test_mistakes():
    with pytest.raises(UsageError, match="unknown actor 'teacher'"):
        agent(actor="teacher")
    with pytest.raises(UsageError, match=r"imitation needs an environment with answers\(\)"):
        Imitation(MlpMemoryPolicy, echo(), n_steps=8, batch_size=8, policy_kwargs=dict(core="gru")).learn(16)
