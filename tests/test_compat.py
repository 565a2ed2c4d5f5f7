"""Interfaces of dependencies that are not public: found where they exist, with a fallback where they do not."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from rmc_rl import compat


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
