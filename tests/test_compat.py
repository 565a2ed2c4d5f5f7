"""Interfaces of dependencies that are not public: they are there, and without them the fallbacks work."""

import argparse
import sys

import gymnasium
import hydra._internal.utils
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hydra import initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, VecTransposeImage
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from rmc_rl import RecurrentPPO, compat, train


class Camera(gymnasium.Env):
    """Images with their channels last, alone or in a dictionary."""

    action_space = spaces.Discrete(2)

    def __init__(self, in_dictionary=False):
        image = spaces.Box(0, 255, (40, 48, 3), np.uint8)
        self.observation_space = spaces.Dict(image=image, number=spaces.Box(-1, 1, (2,))) if in_dictionary else image

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}


def test_hydra_has_its_parsers():
    assert isinstance(compat.hydra_arguments(), argparse.ArgumentParser)
    with initialize_config_module("rmc_rl.configs", version_base="1.3"):
        (override,) = compat.hydra_overrides_parser().parse_overrides(["core=glob(r*)"])
        assert set(override.sweep_string_iterator()) == {"rims", "rmc"}


def test_an_initialised_hydra_is_forgotten():
    with initialize_config_module("rmc_rl.configs", version_base="1.3"):
        compat.forget_hydra()
        assert not GlobalHydra.instance().is_initialized()


@pytest.mark.parametrize(("owner", "name"), [(hydra._internal.utils, "get_args_parser"), (OverridesParser, "create")])
def test_without_its_parsers_hydra_checks_the_command_line_alone(monkeypatch, tmp_path, capsys, owner, name):
    monkeypatch.chdir(tmp_path)
    if name == "create":
        monkeypatch.delattr(owner, name)
        assert compat.forget_hydra() is None
        with initialize_config_module("rmc_rl.configs", version_base="1.3"):
            assert compat.hydra_overrides_parser() is None
        return
    monkeypatch.setattr("hydra.main", lambda **_: lambda _job: lambda: None)  # it needs the parser itself
    monkeypatch.delattr(owner, name)
    assert compat.hydra_arguments() is None
    monkeypatch.setattr(sys, "argv", ["train.py", "seed=3"])
    train.main()
    assert sys.argv == ["train.py", "seed=3"]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("in_dictionary", [False, True])
def test_images_get_their_channels_first_with_and_without_sb3s_function(monkeypatch, in_dictionary):
    make = lambda: Camera(in_dictionary)  # noqa: E731
    wrapped = compat.wrap_env(RecurrentPPO, DummyVecEnv([make]))
    monkeypatch.delattr(BaseAlgorithm, "_wrap_env")
    again = compat.wrap_env(RecurrentPPO, DummyVecEnv([make]))
    assert isinstance(wrapped, VecTransposeImage)
    assert isinstance(again, VecTransposeImage)
    assert wrapped.observation_space == again.observation_space
    assert isinstance(compat.wrap_env(RecurrentPPO, make()), VecTransposeImage)
    assert compat.wrap_env(RecurrentPPO, again) is not None


def test_environments_without_images_stay_as_they_are(monkeypatch):
    env = DummyVecEnv([lambda: gymnasium.make("CartPole-v1")])
    assert compat.wrap_env(RecurrentPPO, env) is env
    monkeypatch.delattr(BaseAlgorithm, "_wrap_env")
    assert compat.wrap_env(RecurrentPPO, env) is env


def test_the_processor_is_asked_for_bfloat16():
    assert isinstance(compat.cpu_has_bfloat16(), bool)


def test_torch_is_watching_only_while_it_records_or_transforms():
    seen = []

    def function(x):
        seen.append(compat.torch_is_watching())
        return x

    x = torch.ones(2)
    assert not compat.torch_is_watching()
    with FlopCounterMode(display=False):
        function(x)
    torch.func.vmap(function)(x)
    torch.func.jvp(function, (x,), (x,))
    torch.jit.trace(function, (x,), check_trace=False)
    with forward_ad.dual_level():
        function(x)
    assert seen == [True] * 5
    assert not compat.torch_is_watching()


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (torch.utils._python_dispatch, "_get_current_dispatch_mode"),
        (torch._C._functorch, "peek_interpreter_stack"),
        (torch.autograd.forward_ad, "_current_level"),
    ],
)
def test_a_torch_without_a_private_name_counts_as_watching(owner, name, monkeypatch):
    monkeypatch.delattr(owner, name)
    assert compat.torch_is_watching()


def test_forward_mode_is_unknown_without_its_private_name(monkeypatch):
    assert compat.forward_mode_is_active() is False
    with forward_ad.dual_level():
        assert compat.forward_mode_is_active() is True
    monkeypatch.delattr(torch.autograd.forward_ad, "_current_level")
    assert compat.forward_mode_is_active() is None


def test_the_compiler_takes_the_result_of_a_marked_function_as_a_constant():
    calls = []

    @compat.constant_for_compiler
    def function():
        calls.append(len(calls))
        return 3.0

    compiled = torch.compile(lambda x: x * function(), backend="eager", fullgraph=True)
    for _ in range(3):
        assert compiled(torch.ones(1)).item() == 3
    assert calls == [0]


@pytest.mark.parametrize("algorithm", [RecurrentPPO, PPO])
def test_what_an_algorithm_carries_between_rollouts_comes_back(algorithm):
    recurrent = algorithm is RecurrentPPO
    models = [algorithm("MlpLstmPolicy" if recurrent else "MlpPolicy", "CartPole-v1", n_steps=64, seed=n) for n in range(2)]
    models[0].learn(128)
    compat.set_algorithm_state(models[1], compat.algorithm_state(models[0]))
    first, second = (compat.algorithm_state(model) for model in models)
    assert first["counters"] == second["counters"]
    assert set(first["counters"]) == set(compat._COUNTERS)
    assert first["episodes"] == second["episodes"] != []
    np.testing.assert_array_equal(first["observations"], second["observations"])
    assert (first["core_states"] is not None) == recurrent


def test_without_tensorboards_events_nothing_is_purged(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    compat.purge_events(None, 3)


def test_distributions_are_checked_again_afterwards(monkeypatch):
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", True)  # importing torch's compiler sets False
    with compat.unchecked_distributions():
        torch.distributions.Normal(torch.zeros(1), -torch.ones(1))
    with pytest.raises(ValueError, match="scale"):
        torch.distributions.Normal(torch.zeros(1), -torch.ones(1))
