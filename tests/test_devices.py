"""
Other devices than the CPU: on a pretended one without a GPU, and on CUDA devices where there are some.

torch's ``FakeTensorMode`` computes shapes, dtypes and devices alone. It raises an error if tensors of two devices meet, and if
a number is read on the host, which would wait for the device.
"""

import subprocess
import sys

import gymnasium
import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from rmc_rl import RecurrentPPO
from rmc_rl.agents.cores import core_names, make_core
from rmc_rl.envs import WORLDS

PRETENDED = torch.device("meta")
TIME, BATCH, INPUT = 5, 3, 8
# while training they read on the host where episodes start; titans also if none does
READ_STARTS = ("gru", "lstm", "titans")
TWO = [
    *("env=CartPole-v1", "core=gru", "seed=3", "num_threads=1", "n_envs=4", "total_timesteps=256", "name=run"),
    *("algo.n_steps=32", "algo.batch_size=64", "algo.n_epochs=2", "checkpoint_every=null"),
]


class PretendedGenerator(torch.Generator):
    """A generator that says that it is of another device."""

    def __new__(cls, device="cpu"):
        generator = super().__new__(cls)
        generator.named = torch.device(device)
        return generator

    device = property(lambda self: self.named)


@pytest.fixture(name="core", params=core_names())
def make_core_elsewhere(request):
    return request.param, make_core(request.param, INPUT).to(PRETENDED)


def test_acting_neither_mixes_devices_nor_waits(core):
    _, core = core
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        state = core.initial_state(BATCH)
        for starts in (None, torch.zeros(1, BATCH, dtype=torch.bool, device=PRETENDED)):
            outputs, state = core(torch.zeros(1, BATCH, INPUT, device=PRETENDED), state, starts)
            assert outputs.device == state.device == PRETENDED


def test_training_neither_mixes_devices_nor_waits(core):
    name, core = core
    if name == "titans":
        pytest.skip("it reads numbers on the host")
    with FakeTensorMode(allow_non_fake_inputs=True):
        inputs = torch.zeros(TIME, BATCH, INPUT, device=PRETENDED, requires_grad=True)
        starts = torch.zeros(TIME, BATCH, dtype=torch.bool, device=PRETENDED)
        core(inputs, core.initial_state(BATCH), None if name in READ_STARTS else starts)[0].sum().backward()
        assert inputs.grad.device == PRETENDED


def test_what_mixes_devices_or_waits_is_noticed():
    with FakeTensorMode():
        here, there = torch.zeros(3), torch.zeros(3, device=PRETENDED)
        with pytest.raises(RuntimeError, match="device"):
            here + there
        with pytest.raises(Exception, match="_local_scalar_dense"):
            bool(there.any())


@pytest.mark.parametrize("world_id", list(WORLDS))
def test_a_step_of_a_world_neither_mixes_devices_nor_waits(world_id, monkeypatch):
    monkeypatch.setattr(torch, "Generator", PretendedGenerator)
    world = gymnasium.make_vec(world_id, num_envs=BATCH, device=PRETENDED, array="torch")
    actions = torch.as_tensor(world.action_space.sample()).to(PRETENDED)
    with FakeTensorMode(allow_non_fake_inputs=True):
        world.reset(seed=0)
        for _ in range(2):
            observations, rewards, terminated, *_ = world.step(actions)
        assert observations.device == rewards.device == terminated.device == PRETENDED


@pytest.mark.parametrize(
    "device", [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=pytest.mark.cuda(devices=2))]
)
def test_two_processes_train_what_one_trains(device, tmp_path):
    """By the command line and torchrun itself: on CUDA devices gradients travel by NCCL."""
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    weights = []
    for starter in ((), torchrun):
        folder = tmp_path / str(len(starter))
        folder.mkdir()
        command = [sys.executable, *starter, "-m", "rmc_rl.train", *TWO, f"device={device}"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stderr
        (path,) = folder.glob("runs/*/*/run/model.zip")
        weights.append(RecurrentPPO.load(path, device="cpu").policy.state_dict())
    one, two = weights
    for name, weight in one.items():
        np.testing.assert_allclose(two[name], weight, rtol=0, atol=1e-6 if device == "cpu" else 1e-4, err_msg=name)
