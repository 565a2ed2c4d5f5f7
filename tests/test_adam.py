"""The optimizer: torch's Adam number for number, and what a start of training does not import."""

import copy
import subprocess
import sys

import pytest
import torch
from gymnasium import spaces

from rmc_rl import MlpMemoryPolicy, RecurrentPPO, make_vec
from rmc_rl.agents.adam import Adam

# torch's compiler takes two seconds; these cores need it to initialise what they count without memory
IMPORT_THE_COMPILER = {"gtrxl", "lru"}
START = """
import sys
import torch
from rmc_rl import MlpMemoryPolicy, RecurrentPPO, make_vec
from rmc_rl.agents.cores import core_names
env = make_vec("rmc_rl/Copy-v0", 2, env_kwargs=dict(n_symbols=2, length=1, delay=1))
model = RecurrentPPO("MlpMemoryPolicy", env, n_steps=8, batch_size=16, policy_kwargs=dict(core="gru"))
model.learn(32)
model.save(sys.argv[1])
RecurrentPPO.load(sys.argv[1], env=env).learn(16)
for core in core_names():
    if core not in sys.argv[2:]:
        with torch.device("meta"):
            MlpMemoryPolicy(env.observation_space, env.action_space, lambda _: 0.0, core=core, ortho_init=False)
        if "torch._dynamo" in sys.modules:
            sys.exit(f"imported by {core}")
sys.exit("imported by training" if "torch._dynamo" in sys.modules else 0)
"""


def weights(seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((3, 4), (5,))]


def descend(optimizer, parameters, steps):
    for step in range(steps):
        optimizer.zero_grad()
        loss = sum(((parameter - step) ** 4).sum() for parameter in parameters)
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("arguments", [{}, dict(fused=True, eps=1e-5), dict(weight_decay=0.1, amsgrad=True)])
def test_it_is_torchs_adam_number_for_number(arguments):
    ours, theirs = weights(0), weights(0)
    optimizers = Adam(ours, lr=0.1, **arguments), torch.optim.Adam(theirs, lr=0.1, **arguments)
    descend(optimizers[0], ours, 3)
    descend(optimizers[1], theirs, 3)
    exchanged = [copy.deepcopy(optimizer.state_dict()) for optimizer in optimizers]
    optimizers[0].load_state_dict(exchanged[1])
    optimizers[1].load_state_dict(exchanged[0])
    descend(optimizers[0], ours, 2)
    descend(optimizers[1], theirs, 2)
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    assert not torch.equal(ours[0], weights(0)[0])


def test_it_has_a_closure_hooks_and_groups_as_torchs():
    parameters, seen = weights(0), []
    optimizer = Adam(parameters[:1], lr=0.1)
    optimizer.add_param_group(dict(params=parameters[1:], lr=0.0))
    optimizer.register_step_post_hook(lambda *_: seen.append(torch.is_grad_enabled()))

    def closure():
        assert torch.is_grad_enabled()
        loss = sum((parameter**2).sum() for parameter in parameters)
        loss.backward()
        return loss

    assert optimizer.step(closure) > 0
    assert len(seen) == 1
    assert torch.is_grad_enabled()
    assert torch.equal(parameters[1], weights(0)[1])
    assert not torch.equal(parameters[0], weights(0)[0])


@pytest.mark.parametrize("kwargs", [{}, dict(optimizer_kwargs=dict(differentiable=True))])
def test_policies_have_it_and_saved_models_name_torchs(tmp_path, kwargs):
    env = make_vec("rmc_rl/Copy-v0", 2, env_kwargs=dict(n_symbols=2, length=1, delay=1))
    model = RecurrentPPO("MlpMemoryPolicy", env, n_steps=4, batch_size=8, policy_kwargs=dict(core="gru") | kwargs)
    assert type(model.policy.optimizer) is (torch.optim.Adam if kwargs else Adam)
    assert model.policy.optimizer_class is torch.optim.Adam
    assert model.policy._get_constructor_parameters()["optimizer_class"] is torch.optim.Adam
    model.save(tmp_path / "model")
    assert type(RecurrentPPO.load(tmp_path / "model").policy.optimizer) is type(model.policy.optimizer)


def test_another_optimizer_stays_as_it_is():
    space = spaces.Discrete(3)
    policy = MlpMemoryPolicy(space, space, lambda _: 0.1, core="gru", optimizer_class=torch.optim.SGD)
    assert type(policy.optimizer) is torch.optim.SGD


def test_training_does_not_import_torchs_compiler(tmp_path):
    command = [sys.executable, "-c", START, str(tmp_path / "model.zip"), *sorted(IMPORT_THE_COMPILER)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
