"""Cores with kernels in many sizes, and what they compute, for the tests of kernels."""

import pytest
import torch

from rmc_rl.agents.cores import Core, make_core
from rmc_rl.agents.cores.kernels import dispatch
from rmc_rl.agents.cores.kernels.cpu import build, library

NEEDED = library.why_not()
if NEEDED is not None and build.compiler() is not None:
    pytest.fail(f"there is a compiler, but no native kernel: {NEEDED}", pytrace=False)
needs_native = pytest.mark.skipif(NEEDED is not None, reason=f"no native kernel: {NEEDED}")

INPUT = 6
# core: case: steps, batch, arguments of the core
OF_CORES = {
    "rmc": {
        "usual": (7, 4, {}),
        "one step": (1, 4, {}),
        "one row": (5, 1, {}),
        "one step of one row": (1, 1, {}),
        "more rows than a group": (3, 21, {}),
        "many steps": (90, 3, dict(head_size=4)),
        "one slot and head": (6, 5, dict(num_slots=1, num_heads=1, head_size=3, mlp_layers=1)),
        "width 1": (6, 5, dict(num_slots=2, num_heads=1, head_size=1)),
        "blocks": (5, 3, dict(num_blocks=3, mlp_layers=3)),
        "blocks and entities": (5, 3, dict(num_blocks=2, num_entities=3, head_size=5)),
        "entities": (5, 3, dict(num_entities=2, num_slots=3)),
        "keys larger than values": (5, 3, dict(key_size=9, head_size=5)),
        "keys smaller than values": (5, 3, dict(key_size=3, head_size=17, num_blocks=2)),
        "a gate for each slot": (5, 5, dict(gate_style="memory", head_size=7, input_bias=-0.5)),
        "no gates": (5, 5, dict(gate_style="none", num_blocks=2, mlp_layers=1)),
        "biases": (5, 3, dict(input_bias=-1.5, forget_bias=2.5, num_heads=3)),
        "head size 8": (5, 3, dict(head_size=8)),
        "head size 32": (5, 3, dict(head_size=32, num_heads=2)),
        "head size 64": (4, 3, dict(head_size=64, num_heads=3)),
        "many slots": (3, 2, dict(num_slots=70, head_size=3)),
        "readout": (4, 3, dict(readout="attention")),
    },
    "lstm": {
        "usual": (7, 4, {}),
        "one row": (5, 1, dict(width=17)),
        "more rows than a group": (3, 70, dict(width=5)),
        "many steps": (300, 2, dict(width=3)),
        "layers": (6, 5, dict(width=9, num_layers=3)),
        "width 1": (6, 5, dict(width=1)),
    },
    "gru": {
        "usual": (7, 4, {}),
        "one row": (5, 1, dict(width=17)),
        "more rows than a group": (3, 70, dict(width=5)),
        "layers": (6, 5, dict(width=9, num_layers=2)),
        "width 1": (6, 5, dict(width=1)),
    },
    "rims": {
        "usual": (7, 4, {}),
        "one step of one row": (1, 1, {}),
        "more rows than a group": (3, 21, {}),
        "many steps": (90, 3, dict(module_size=3)),
        "gru": (6, 5, dict(cell="gru", module_size=17)),
        "one module": (6, 5, dict(num_modules=1, num_active=1, module_size=3, comm_heads=1)),
        "odd sizes": (
            6,
            5,
            dict(module_size=1, input_key_size=5, read_size=9, comm_heads=3, comm_key_size=3, comm_value_size=7),
        ),
        "all are active": (6, 5, dict(num_active=6)),
        "silent": (6, 5, dict(comm_heads=0)),
        "heads": (6, 5, dict(input_heads=4, input_key_size=9)),
        "ties": (6, 5, dict(initial_state="zeros")),
        "sparse attention to copies": (6, 5, dict(input_copies=4, input_heads=2, embedding_size=0)),
        "atari": (6, 5, dict(variant="atari")),
        "atari, sparse": (6, 5, dict(variant="atari", num_active=2, input_heads=2)),
        "atari, silent": (6, 5, dict(variant="atari", comm_heads=0, cell="gru")),
        "dido": (6, 5, dict(variant="dido", input_heads=3)),
        "dido, gru": (6, 5, dict(variant="dido", cell="gru", comm_heads=2)),
    },
    "brims": {
        "usual": (7, 4, {}),
        "more rows than a group": (3, 21, dict(cell="gru")),
        "three layers": (6, 5, dict(num_modules=[3, 2, 4], num_active=[2, 1, 2], module_size=[4, 5, 6])),
        "one layer": (6, 5, dict(num_modules=[5], num_active=[2], module_size=[9])),
        "bottom-up": (6, 5, dict(top_down=False)),
        "hidden": (6, 5, dict(use_inactive=False)),
        "blocked": (6, 5, dict(blocked_grad=True)),
        "hidden and blocked": (6, 5, dict(use_inactive=False, blocked_grad=True, cell="gru")),
        "copies": (6, 5, dict(input_copies=3)),
        "atari": (6, 5, dict(variant="atari", top_down=False)),
        "dido": (6, 5, dict(variant="dido", top_down=False, comm_heads=0)),
    },
}
CASES = {f"{core} {case}": (core, *found) for core, cases in OF_CORES.items() for case, found in cases.items()}
USUAL = [f"{core} usual" for core in OF_CORES]


def make(case: str, dtype=torch.float64, **kwargs) -> Core:
    torch.manual_seed(3)
    name, _, _, arguments = CASES[case]
    core = make_core(name, INPUT, arguments | kwargs)
    for name, parameter in core.named_parameters():  # norms start as the identity, biases at 0, which would hide mistakes
        if "norm" in name or "bias" in name:
            parameter.data.add_(0.3 * torch.randn_like(parameter))
    return core.to(dtype)


def results(core, kernel, inputs, state, starts, learned=None):
    """Outputs, last state and all gradients."""
    core.kernel = kernel
    core.zero_grad()
    leaves = {"inputs": inputs.clone().requires_grad_(), "state": state.clone().requires_grad_()}
    if learned is not None:
        leaves["learned"] = learned.clone().requires_grad_()
        core.initial_state = lambda batch_size: leaves["learned"].expand(batch_size, -1)
    outputs, last = core(leaves["inputs"], leaves["state"], starts)
    weights = torch.linspace(-1, 1, outputs.numel(), dtype=outputs.dtype).view_as(outputs)
    ((outputs * weights).sum() + (last**2).sum()).backward()
    found = {"outputs": outputs.detach(), "last": last.detach()}
    for name, leaf in (*core.named_parameters(), *leaves.items()):
        found[name] = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad.clone()
    return found


def data(core, case, dtype=torch.float64):
    torch.manual_seed(4)
    _, time, batch, _ = CASES[case]
    inputs = 2 * torch.randn(time, batch, INPUT, dtype=dtype)
    state = torch.randn(batch, core.state_size, dtype=dtype)
    starts = torch.rand(time, batch) < 0.3
    starts[0, 0] = True
    return inputs, state, starts


def clear_caches() -> None:
    for cache in (library.load, library.function, dispatch._find, dispatch._warn):
        cache.cache_clear()


def assert_same(found, expected, tolerance):
    assert set(found) == set(expected)
    for name, value in expected.items():
        scale = max(1.0, value.abs().max().item())
        assert found[name].dtype == value.dtype, name
        torch.testing.assert_close(found[name], value, rtol=0, atol=tolerance * scale, msg=lambda m, n=name: f"{n}: {m}")
