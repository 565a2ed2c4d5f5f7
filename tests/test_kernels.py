"""The fused kernels compute what eager torch computes, and step aside where they cannot."""

import copy
import pickle
import warnings

import pytest
import torch

from rmc_rl.agents.cores import RMC, kernels
from rmc_rl.agents.cores.kernels import build, native, native_rmc
from rmc_rl.errors import UsageError

NEEDED = native.why_not()
if NEEDED is not None and build.compiler() is not None:
    pytest.fail(f"there is a compiler, but no native kernel: {NEEDED}", pytrace=False)
needs_native = pytest.mark.skipif(NEEDED is not None, reason=f"no native kernel: {NEEDED}")

INPUT = 6
# steps, batch, arguments of the core
CASES = {
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
}


def make(kwargs, dtype=torch.float64) -> RMC:
    torch.manual_seed(3)
    core = RMC(INPUT, **kwargs)
    for name, parameter in core.named_parameters():  # norms start as the identity, which would hide mistakes
        if "norm" in name:
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
    found = {name: parameter.grad for name, parameter in core.named_parameters()}
    found |= {name: leaf.grad for name, leaf in leaves.items()}
    return {"outputs": outputs.detach(), "last": last.detach()} | {name: value.clone() for name, value in found.items()}


def data(core, time, batch, dtype=torch.float64):
    torch.manual_seed(4)
    inputs = 2 * torch.randn(time, batch, INPUT, dtype=dtype)
    state = torch.randn(batch, core.state_size, dtype=dtype)
    starts = torch.rand(time, batch) < 0.3
    starts[0, 0] = True
    return inputs, state, starts


def clear_caches() -> None:
    for cache in (native.load, native._function, kernels._find, kernels._warn):
        cache.cache_clear()


def used(monkeypatch) -> list[bool]:
    """Grows with each result of the kernel: what is compared with eager must not be eager itself."""
    calls, unroll = [], native_rmc.unroll

    def counted(*args):
        memories = unroll(*args)
        calls.extend([True] * (memories is not None))
        return memories

    monkeypatch.setattr(native_rmc, "unroll", counted)
    return calls


def assert_same(found, expected, tolerance):
    assert set(found) == set(expected)
    for name, value in expected.items():
        scale = max(1.0, value.abs().max().item())
        assert found[name].dtype == value.dtype, name
        torch.testing.assert_close(found[name], value, rtol=0, atol=tolerance * scale, msg=lambda m, n=name: f"{n}: {m}")


@needs_native
@pytest.mark.parametrize("case", CASES)
def test_equals_eager(case, monkeypatch):
    time, batch, kwargs = CASES[case]
    core, calls = make(kwargs), used(monkeypatch)
    inputs, state, starts = data(core, time, batch)
    for here in (starts, None):
        found, expected = (results(core, kernel, inputs, state, here) for kernel in ("native", "eager"))
        assert_same(found, expected, 1e-11)
    assert len(calls) == 2


@needs_native
@pytest.mark.parametrize("case", ["usual", "blocks and entities", "a gate for each slot", "no gates"])
def test_float32_is_as_exact_as_eager(case):
    time, batch, kwargs = CASES[case]
    core = make(kwargs)
    arrays = data(core, time, batch)
    exact = results(core, "eager", *arrays)
    single = make(kwargs, torch.float32)
    inputs, state, starts = arrays
    for kernel in ("native", "eager"):
        found = results(single, kernel, inputs.float(), state.float(), starts)
        assert_same({name: value.double() for name, value in found.items()}, exact, 3e-5)


@needs_native
def test_gradient_reaches_a_learned_initial_state():
    core = make({})
    inputs, state, starts = data(core, 6, 5)
    learned = torch.randn(core.state_size, dtype=torch.float64)
    found, expected = (results(core, kernel, inputs, state, starts, learned) for kernel in ("native", "eager"))
    assert expected["learned"].abs().max() > 1e-3
    assert_same(found, expected, 1e-11)


@needs_native
@pytest.mark.parametrize("threads", [2, 3, 8])
@pytest.mark.parametrize("batch", [1, 5, 40])
@pytest.mark.parametrize("of", ["torch", "our own"])
def test_threads_change_nothing(threads, batch, of, monkeypatch):
    monkeypatch.setattr(native, "SMALL_WORK", 0)
    if of == "our own":
        monkeypatch.setattr(native, "_parallel", lambda: None)
    elif native._parallel() is None:
        pytest.skip("torch has no OpenMP runtime that can be called")
    core = make({})
    arrays = data(core, 5, batch)
    alone = results(core, "native", *arrays)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = results(core, "native", *arrays)
        again = results(core, "native", *arrays)
    finally:
        torch.set_num_threads(before)
    assert_same(found, alone, 1e-12)
    assert all(value.equal(found[name]) for name, value in again.items())


@needs_native
@pytest.mark.parametrize("name", build.instruction_sets())
def test_every_instruction_set(name, monkeypatch):
    names = native.usable()
    if name not in names:
        pytest.skip(f"this CPU has no {name}")
    monkeypatch.setattr(native, "usable", lambda: (name,))
    clear_caches()
    try:
        assert f"native-{name}" in native.about()
        for case in ("usual", "blocks and entities", "keys larger than values", "more rows than a group"):
            time, batch, kwargs = CASES[case]
            for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 1e-4)):
                core = make(kwargs, dtype)
                inputs, state, starts = data(core, time, batch, dtype)
                found, expected = (results(core, kernel, inputs, state, starts) for kernel in ("native", "eager"))
                assert_same(found, expected, tolerance)
    finally:
        clear_caches()


@needs_native
@pytest.mark.parametrize("case", ["usual", "one row", "blocks and entities", "no gates", "readout"])
def test_an_acting_step_equals_eager(case, monkeypatch):
    _, batch, kwargs = CASES[case]
    core, calls = make(kwargs), used(monkeypatch)
    inputs, state, _ = data(core, 1, batch)
    with torch.no_grad():
        core.kernel = "native"
        found = core.step(inputs[0], state)
        assert len(calls) == 1
        core.kernel = "eager"
        torch.testing.assert_close(found, core.step(inputs[0], state), rtol=0, atol=1e-12)
    assert len(calls) == 1


@needs_native
def test_what_is_not_a_number_stays_so():
    core = make(dict(kernel="native"), torch.float32)
    inputs, state, _ = data(core, 3, 4, torch.float32)
    inputs[1, 2, 0] = torch.nan
    outputs, _ = core(inputs, state)
    assert outputs.isnan().flatten(2).all(-1).tolist() == [[False] * 4, *[[False, False, True, False]] * 2]
    outputs, _ = core(1e4 * inputs.nan_to_num(), 1e4 * state)
    assert outputs.isfinite().all()


@needs_native
def test_inputs_may_lie_in_memory_in_any_way():
    core = make({})
    inputs, state, starts = data(core, 5, 4)
    expected = results(core, "native", inputs, state, starts)
    others = (inputs.transpose(0, 1).contiguous().transpose(0, 1), state.t().contiguous().t(), starts.t().contiguous().t())
    assert_same(results(core, "native", *others), expected, 0)


@needs_native
def test_part_of_the_gradients():
    core = make({})
    inputs, state, starts = data(core, 5, 4)
    expected = results(core, "eager", inputs, state, starts)["blocks.0.qkv.weight"]
    for name, parameter in core.named_parameters():
        parameter.requires_grad_(name == "blocks.0.qkv.weight")
    core.kernel = "native"
    core.zero_grad()
    outputs, last = core(inputs, state, starts)
    weights = torch.linspace(-1, 1, outputs.numel(), dtype=outputs.dtype).view_as(outputs)
    ((outputs * weights).sum() + (last**2).sum()).backward()
    torch.testing.assert_close(core.blocks[0].qkv.weight.grad, expected, rtol=0, atol=1e-11 * expected.abs().max())
    for parameter in core.parameters():
        parameter.requires_grad_(False)
    assert not core(inputs, state, starts)[0].requires_grad


@needs_native
def test_second_derivatives_are_refused():
    core = make(dict(kernel="native"))
    inputs, state, _ = data(core, 2, 2)
    outputs, _ = core(inputs.requires_grad_(), state)
    (gradient,) = torch.autograd.grad((outputs**2).sum(), inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@needs_native
def test_what_the_kernel_does_not_take_goes_to_eager(monkeypatch):
    core, calls = make(dict(kernel="native"), torch.float32), used(monkeypatch)
    inputs, state, starts = data(core, 2, 3, torch.float32)
    with pytest.raises(RuntimeError):
        core(inputs, state.double())
    with pytest.raises(RuntimeError):
        core(inputs, state[:2])
    with pytest.raises((RuntimeError, IndexError)):
        core(inputs, state, starts[:, :2])
    half = copy.deepcopy(core).bfloat16()
    assert half(inputs.bfloat16(), state.bfloat16())[0].dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        core(inputs, state)
    core.inspect(inputs, state)
    assert not calls
    core(inputs, state, starts)
    assert calls


def test_a_copy_without_the_argument_of_later_versions():
    core = pickle.loads(pickle.dumps(make(dict(kernel="native"))))
    assert core.kernel == "native"
    assert "kernel" not in core.state_dict()


@pytest.fixture(name="lost")
def make_lost(monkeypatch, tmp_path):
    """No library, as in a wheel that was built without a compiler."""
    monkeypatch.setattr(build, "library", lambda name: tmp_path / f"native-{name}.so")
    clear_caches()
    yield tmp_path
    clear_caches()


@pytest.mark.usefixtures("lost")
def test_without_a_library_one_warning_and_the_same_results():
    core = make({})
    arrays = data(core, 4, 3)
    expected = results(core, "eager", *arrays)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(results(core, "auto", *arrays), expected, 0)
    with pytest.warns(UserWarning, match=r"kernel=native .* eager .* was not built \(python -m rmc_rl\.agents\.cores"):
        assert_same(results(core, "native", *arrays), expected, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(results(core, "native", *arrays), expected, 0)
    assert "not built" in kernels.report("auto", "rmc", "cpu")


def test_a_library_that_cannot_be_loaded(lost):
    for name in build.instruction_sets():
        (lost / f"native-{name}.so").write_bytes(b"not a library")
    core = make({})
    arrays = data(core, 4, 3)
    expected = results(core, "eager", *arrays)
    with pytest.warns(UserWarning, match="computing with eager torch: native-.* cannot be loaded"):
        assert_same(results(core, "auto", *arrays), expected, 0)


@needs_native
def test_a_library_of_other_sources_is_noticed(monkeypatch, request):
    found = {name: build.library(name) for name in build.instruction_sets()}
    request.getfixturevalue("lost")
    monkeypatch.setattr(build, "library", found.__getitem__)
    monkeypatch.setattr(build, "checksum", lambda: "another")
    with pytest.warns(UserWarning, match=r"built from other sources than those beside it \(python -m rmc_rl\.agents\.cores"):
        assert kernels.fused("auto", "rmc", "cpu") is None
    assert "other sources" in kernels.report("auto", "rmc", "cpu")


def test_without_a_compiler_nothing_is_built(lost, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert set(build.build()) == set(build.instruction_sets())
    assert not list(lost.iterdir())


def test_reports():
    assert kernels.report("eager", "rmc", "cpu") == "eager (it was asked for)"
    assert kernels.report("auto", "rmc", "mps") == "eager (there is no native kernel for mps)"
    if NEEDED is None:
        assert kernels.report("auto", "rmc", "cpu").startswith("native (C++, native-")
    with pytest.raises(UsageError, match="unknown kernel 'natve'; did you mean 'native'"):
        RMC(INPUT, kernel="natve")
