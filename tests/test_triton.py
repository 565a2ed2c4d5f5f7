"""
The Triton kernels compute what eager torch computes.

On a CUDA device they are compiled; without one Triton's interpreter runs them on the CPU, in a process of its own, because
it must be told before Triton is imported.
"""

import importlib
import os
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import pytest
import torch

from rmc_rl.agents.cores import RMC
from rmc_rl.agents.cores.kernels import dispatch
from rmc_rl.agents.cores.kernels.triton import rmc as triton_rmc

INTERPRETED = triton_rmc.interpreted()
DEVICE = "cpu" if INTERPRETED else "cuda"
NEEDED = triton_rmc.why_not()
needs_kernel = pytest.mark.skipif(NEEDED is not None, reason=f"no Triton kernel: {NEEDED}")
TOLERANCES = {torch.float64: 1e-11, torch.float32: 1e-5}

INPUT = 6
# steps, batch, arguments of the core
CASES = {
    "usual": (3, 5, {}),
    "one step": (1, 3, {}),
    "one step of one row": (1, 1, {}),
    "one slot and head": (4, 3, dict(num_slots=1, num_heads=1, head_size=3, mlp_layers=1)),
    "width 1": (3, 2, dict(num_slots=2, num_heads=1, head_size=1)),
    "more rows than a program": (2, 19, dict(num_slots=3, num_heads=3, head_size=5)),
    "blocks and entities": (3, 3, dict(num_blocks=3, num_entities=2, head_size=5, mlp_layers=3)),
    "keys larger than values": (2, 3, dict(key_size=9, head_size=5, num_entities=3)),
    "keys smaller than values": (2, 3, dict(key_size=3, head_size=17, num_blocks=2)),
    "a gate for each slot": (3, 3, dict(gate_style="memory", head_size=7, input_bias=-0.5, forget_bias=2.5)),
    "no gates": (3, 3, dict(gate_style="none", num_blocks=2, mlp_layers=1)),
    "wider than a tile": (2, 2, dict(num_heads=2, head_size=40)),
}


def make(kwargs, dtype) -> RMC:
    torch.manual_seed(3)
    core = RMC(INPUT, **kwargs)
    for name, parameter in core.named_parameters():  # norms start as the identity, biases at 0, which would hide mistakes
        if "norm" in name or "bias" in name:
            parameter.data.add_(0.3 * torch.randn_like(parameter))
    return core.to(DEVICE, dtype)


def data(core, time, batch, dtype):
    torch.manual_seed(4)
    inputs = 2 * torch.randn(time, batch, INPUT, dtype=dtype)
    state, learned = torch.randn(batch, core.state_size, dtype=dtype), torch.randn(core.state_size, dtype=dtype)
    starts = torch.rand(time, batch) < 0.3
    starts[-1, 0] = True
    return tuple(x.to(DEVICE) for x in (inputs, state, learned, starts))


def results(core, unroll, inputs, state, learned, starts):
    """The memories and all gradients, also of a learned initial state."""
    core.zero_grad()
    leaves = {"inputs": inputs, "state": state, "learned": learned}
    leaves = {name: leaf.clone().requires_grad_() for name, leaf in leaves.items()}
    core.initial_state = lambda batch_size: leaves["learned"].expand(batch_size, -1)
    memories = unroll(core, leaves["inputs"], leaves["state"], starts)
    weights = torch.linspace(-1, 1, memories.numel(), dtype=memories.dtype, device=DEVICE).view_as(memories)
    (memories * weights).sum().backward()
    found = {name: parameter.grad for name, parameter in core.named_parameters()}
    found |= {name: leaf.grad for name, leaf in leaves.items() if name != "learned" or starts is not None}
    assert all(value is not None for value in found.values())
    return {"memories": memories.detach()} | {name: value.clone() for name, value in found.items()}


def eager(core, inputs, state, starts):
    core.kernel = "eager"
    return core(inputs, state, starts)[0]  # "flatten" writes out the memory itself


def fused(core, inputs, state, starts):
    rows, *gates = core._embed(inputs)
    memories = triton_rmc.unroll(core, rows, gates[0].squeeze(-2) if gates else None, state, starts)
    assert memories is not None
    return memories.flatten(2)


def assert_same(found, expected, tolerance):
    assert set(found) == set(expected)
    for name, value in expected.items():
        scale = max(1.0, value.abs().max().item())
        torch.testing.assert_close(found[name], value, rtol=0, atol=tolerance * scale, msg=lambda m, n=name: f"{n}: {m}")


@needs_kernel
@pytest.mark.parametrize(
    ("case", "dtype"),
    [(case, torch.float64) for case in CASES]
    + [(case, torch.float32) for case in ("usual", "blocks and entities", "no gates")],
)
def test_equals_eager(case, dtype):
    time, batch, kwargs = CASES[case]
    core = make(kwargs, dtype)
    inputs, state, learned, starts = data(core, time, batch, dtype)
    for here in (starts, None) if case == "usual" else (starts,):
        found, expected = (results(core, unroll, inputs, state, learned, here) for unroll in (fused, eager))
        assert_same(found, expected, TOLERANCES[dtype])


@needs_kernel
@pytest.mark.parametrize("case", ["usual", "blocks and entities", "no gates"])
def test_acting_equals_training(case):
    time, batch, kwargs = CASES[case]
    core = make(kwargs, torch.float32)
    inputs, state, _, starts = data(core, time, batch, torch.float32)
    with torch.no_grad():
        kept_nothing = fused(core, inputs, state, starts)
    torch.testing.assert_close(kept_nothing, fused(core, inputs, state, starts), rtol=0, atol=0)


@needs_kernel
def test_a_core_with_kernel_native_uses_it(monkeypatch):
    calls, unroll = [], triton_rmc.unroll
    monkeypatch.setattr(triton_rmc, "unroll", lambda *args: calls.append(args) or unroll(*args))
    monkeypatch.setitem(dispatch.MODULES, ("rmc", DEVICE), "triton.rmc")
    dispatch._find.cache_clear()
    core = make(dict(kernel="native"), torch.float32)
    inputs, state, _, starts = data(core, 2, 2, torch.float32)
    assert "Triton" in dispatch.report("native", "rmc", DEVICE)
    found = core(inputs, state, starts)[0]
    with torch.no_grad():
        output = core(inputs[:1], state)[0][0]
    assert len(calls) == 2
    torch.testing.assert_close(found, eager(core, inputs, state, starts), rtol=0, atol=1e-5)
    torch.testing.assert_close(output, core.step(inputs[0], state)[0], rtol=0, atol=1e-5)
    dispatch._find.cache_clear()


@pytest.mark.skipif(INTERPRETED, reason="what the interpreter runs is not compiled")
@pytest.mark.parametrize("name", ["forward", "backward"])
@pytest.mark.parametrize("kwargs", [dict(num_blocks=2, mlp_layers=3, num_entities=2), dict(gate_style="none")], ids=str)
def test_compiles_without_a_gpu(name, kwargs):
    """The compiler knows rules that the interpreter does not: of types in loops and of what is constant."""
    triton = pytest.importorskip("triton", reason="Triton is not installed")
    compiler, backends = (importlib.import_module(f"triton.{part}") for part in ("compiler", "backends.compiler"))
    function = getattr(importlib.import_module(f"rmc_rl.agents.cores.kernels.triton.{name}"), name)
    core = RMC(INPUT, num_heads=2, head_size=8, **kwargs)
    sizes = triton_rmc.sizes_of(core)
    constants = triton_rmc._options(sizes, 8, torch.device("cpu")) | dict(STARTS=True)
    if name == "forward":
        constants |= dict(KEEP=True, INPUT_BIAS=0.0, FORGET_BIAS=1.0)
    warps = constants.pop("num_warps")
    types = {name: "constexpr" for name in constants} | dict(T="i32", B="i32", starts="*u8")
    signature = {parameter.name: types.get(parameter.name, "*fp32") for parameter in function.params}
    compiled = triton.compile(
        compiler.ASTSource(function, signature, constexprs=constants),
        target=backends.GPUTarget("cuda", 80, 32),
        options=dict(num_warps=warps),
    )
    assert compiled.metadata.shared < 48 * 1024  # what a program gets on any GPU


def run(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own."""
    environment = {**os.environ, **variables}
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, env=environment)


def test_the_interpreter_computes_the_same():
    triton = pytest.importorskip("triton", reason="Triton is not installed")
    if triton.__version__.startswith("3.4."):
        pytest.skip("the interpreter of Triton 3.4 fails in a loop over time with numpy 2.4")
    if NEEDED is None:
        pytest.skip("these tests run the kernel already")
    command = [sys.executable, "-m", "pytest", "-q", __file__]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TRITON_INTERPRET": "1"})
    assert done.returncode == 0, done.stdout[-4000:]
    assert "passed" in done.stdout


def test_triton_is_not_imported_without_a_gpu():
    done = run("import sys, rmc_rl, rmc_rl.agents.cores.kernels.triton.rmc; sys.exit('triton' in sys.modules)")
    assert done.returncode == 0, done.stderr


def test_without_triton_it_is_eager_and_says_why():
    done = run(
        """
        import sys, warnings
        sys.modules["triton"] = None  # as if it were not installed
        from rmc_rl.agents.cores.kernels import dispatch
        report = dispatch.report("native", "rmc", "cuda")
        assert "Triton cannot be imported" in report, report
        with warnings.catch_warnings(record=True) as caught:
            assert dispatch.fused("native", "rmc", "cuda") is None
        assert "Triton cannot be imported" in str(caught[0].message)
        """,
        TRITON_INTERPRET="0",
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("capability", "timed"), [((9, 0), True), ((8, 0), False), ((12, 0), False), (None, False)])
def test_auto_takes_the_kernel_only_where_it_was_timed(capability, timed, monkeypatch):
    kernel = SimpleNamespace(about=lambda: "Triton")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(dispatch, "_find", lambda *_: kernel)
    monkeypatch.setattr(dispatch, "_was_timed", dispatch._was_timed.__wrapped__)  # which remembers nothing
    assert dispatch.fused("auto", "rmc", "cuda") is (kernel if timed else None)
    assert dispatch.fused("native", "rmc", "cuda") is kernel
    assert ("not timed" in dispatch.report("auto", "rmc", "cuda")) != timed
