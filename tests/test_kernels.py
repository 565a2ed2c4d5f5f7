"""The fused kernels compute what eager torch computes."""

import contextlib
import copy
import ctypes
import functools
import pickle

import pytest
import torch
import torch.nn.utils.prune
from kernel_cases import CASES, INPUT, USUAL, assert_same, clear_caches, data, make, needs_native, results
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from rmc_rl.agents.cores import GRU, LSTM, RMC, BRIMs, Core, RIMs
from rmc_rl.agents.cores.kernels import dispatch
from rmc_rl.agents.cores.kernels.cpu import build, calling, library
from rmc_rl.agents.cores.kernels.cpu import rims as cpu_rims
from rmc_rl.agents.cores.kernels.cpu import rnn as cpu_rnn


def used(monkeypatch) -> list[bool]:
    """A list that grows with each call of a kernel, to tell a kernel from eager torch."""
    calls, forward = [], calling._forward

    def counted(*args, **kwargs):
        calls.append(True)
        return forward(*args, **kwargs)

    monkeypatch.setattr(calling, "_forward", counted)
    return calls


@needs_native
@pytest.mark.parametrize("case", CASES)
def test_equals_eager(case, monkeypatch):
    core, calls = make(case), used(monkeypatch)
    inputs, state, starts = data(core, case)
    for here in (starts, None):
        found, expected = (results(core, kernel, inputs, state, here) for kernel in ("native", "eager"))
        assert_same(found, expected, 1e-11)
    layers = core.rnn.num_layers if hasattr(core, "rnn") else 1
    assert len(calls) == 2 * layers


@needs_native
@pytest.mark.parametrize(
    "case", [*USUAL, "rmc blocks and entities", "rmc a gate for each slot", "rmc no gates", "lstm layers"]
)
def test_float32_is_as_exact_as_eager(case):
    core, single = make(case), make(case, torch.float32)
    inputs, state, starts = data(core, case)
    exact = results(core, "eager", inputs, state, starts)
    for kernel in ("native", "eager"):
        found = results(single, kernel, inputs.float(), state.float(), starts)
        assert_same({name: value.double() for name, value in found.items()}, exact, 3e-5)


@needs_native
@pytest.mark.parametrize("case", USUAL)
def test_gradient_reaches_a_learned_initial_state(case):
    core = make(case)
    inputs, state, starts = data(core, case)
    learned = torch.randn(core.state_size, dtype=torch.float64)
    found, expected = (results(core, kernel, inputs, state, starts, learned) for kernel in ("native", "eager"))
    assert expected["learned"].abs().max() > 1e-3
    assert_same(found, expected, 1e-11)


@needs_native
@pytest.mark.parametrize("threads", [2, 3, 8])
@pytest.mark.parametrize("batch", [1, 5, 40])
@pytest.mark.parametrize("of", ["torch", "our own"])
@pytest.mark.parametrize("case", ["rmc usual", "lstm usual", "brims usual"])
def test_threads_change_nothing(case, threads, batch, of, monkeypatch):
    monkeypatch.setattr(calling, "SMALL_WORK", 0)
    if of == "our own":
        monkeypatch.setattr(calling, "_parallel", lambda: None)
    elif calling._parallel() is None:
        pytest.skip("torch has no OpenMP runtime that can be called")
    core = make(case)
    torch.manual_seed(4)
    arrays = torch.randn(5, batch, INPUT).double(), torch.randn(batch, core.state_size).double(), torch.rand(5, batch) < 0.3
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
    names = library.usable()
    if name not in names:
        pytest.skip(f"this CPU has no {name}")
    monkeypatch.setattr(library, "usable", lambda: (name,))
    clear_caches()
    try:
        assert f"native-{name}" in library.about()
        for case in (*USUAL, "rmc blocks and entities", "rmc keys larger than values", "rims odd sizes", "rims atari, sparse"):
            for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 1e-4)):
                core = make(case, dtype)
                arrays = data(core, case, dtype)
                found, expected = (results(core, kernel, *arrays) for kernel in ("native", "eager"))
                assert_same(found, expected, tolerance)
    finally:
        clear_caches()


@needs_native
@pytest.mark.parametrize(
    "case", ["rmc usual", "rmc one row", "rmc no gates", "rmc readout", "rims usual", "rims dido", "brims usual"]
)
def test_an_acting_step_equals_eager(case, monkeypatch):
    core, calls = make(case), used(monkeypatch)
    inputs, state, _ = data(core, case)
    with torch.no_grad():
        core.kernel = "native"
        found = core(inputs[:1], state)
        assert len(calls) == 1
        core.kernel = "eager"
        torch.testing.assert_close(found, core(inputs[:1], state), rtol=0, atol=1e-12)
    assert len(calls) == 1


@needs_native
@pytest.mark.parametrize("case", USUAL)
def test_what_is_not_a_number_stays_so(case):
    core = make(case, torch.float32, kernel="native")
    inputs, state, _ = data(core, case, torch.float32)
    inputs[1, 2, 0] = torch.nan
    outputs, _ = core(inputs, state)
    assert outputs.isnan().flatten(2).any(-1).tolist() == [[False] * 4, *[[False, False, True, False]] * (len(inputs) - 1)]
    outputs, _ = core(1e4 * inputs.nan_to_num(), 1e4 * state)
    assert outputs.isfinite().all()


@needs_native
@pytest.mark.parametrize("case", USUAL)
def test_inputs_may_lie_in_memory_in_any_way(case):
    core = make(case)
    inputs, state, starts = data(core, case)
    expected = results(core, "native", inputs, state, starts)
    others = (inputs.transpose(0, 1).contiguous().transpose(0, 1), state.t().contiguous().t(), starts.t().contiguous().t())
    assert_same(results(core, "native", *others), expected, 1e-12)


@needs_native
@pytest.mark.parametrize(
    ("case", "trained"),
    [
        ("rmc usual", "blocks.0.qkv.weight"),
        ("gru layers", "rnn.bias_hh_l1"),
        ("rims usual", "layers.0.cells.from_read.bias"),
        ("brims usual", "layers.1.input_attention.key.0.weight"),
    ],
)
def test_part_of_the_gradients(case, trained):
    core = make(case)
    inputs, state, starts = data(core, case)
    expected = results(core, "eager", inputs, state, starts)[trained]
    parameters = dict(core.named_parameters())
    for name, parameter in parameters.items():
        parameter.requires_grad_(name == trained)
    core.kernel = "native"
    core.zero_grad()
    outputs, last = core(inputs, state, starts)
    weights = torch.linspace(-1, 1, outputs.numel(), dtype=outputs.dtype).view_as(outputs)
    ((outputs * weights).sum() + (last**2).sum()).backward()
    torch.testing.assert_close(parameters[trained].grad, expected, rtol=0, atol=1e-11 * expected.abs().max())
    for parameter in core.parameters():
        parameter.requires_grad_(False)
    assert not core(inputs, state, starts)[0].requires_grad


@needs_native
@pytest.mark.filterwarnings("ignore:Using backward")
@pytest.mark.parametrize("route", ["backward", "grad"])
@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("case", USUAL)
def test_second_derivatives_are_refused(case, power, route):
    core = make(case, kernel="native")
    inputs, state, _ = data(core, case)
    total = (core(inputs.requires_grad_(), state)[0] ** power).sum()
    run = total.backward if route == "backward" else functools.partial(torch.autograd.grad, total, inputs)
    with pytest.raises(RuntimeError, match=r"no second derivatives, .* kernel='eager'"):
        run(create_graph=True)


@needs_native
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("case", USUAL)
def test_what_watches_or_transforms_computations_gets_eager(case, monkeypatch):
    core, calls = make(case, kernel="native"), used(monkeypatch)
    inputs, state, _ = data(core, case)
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        assert core(torch.empty_like(inputs), state)[0].shape == (*inputs.shape[:2], core.output_size)
    core(fake.from_tensor(inputs), state)
    with FlopCounterMode(display=False) as flops:
        core(inputs, state)
    assert flops.get_total_flops() > 0
    slopes = torch.func.grad(lambda x: core(x, state)[0].sum())(inputs)
    traced = torch.jit.trace(core, (inputs, state), check_trace=False)
    graph = make_fx(lambda x: core(x, state)[0])(inputs)
    nowhere = copy.deepcopy(core).to("meta")
    nowhere.kernel = "auto"
    assert nowhere(inputs.to("meta"), state.to("meta"))[0].is_meta
    assert not calls
    outputs = core(inputs.requires_grad_(), state)[0]
    assert calls
    outputs.sum().backward()
    torch.testing.assert_close(slopes, inputs.grad, rtol=0, atol=1e-10)
    for other in (traced(inputs, state)[0], graph(inputs)):
        torch.testing.assert_close(other, outputs, rtol=0, atol=1e-10)


@needs_native
@pytest.mark.parametrize(
    ("case", "part"), [("rmc usual", "mlp.0"), ("rims usual", "communication.gate"), ("gru usual", "rnn")]
)
def test_a_changed_submodule_gets_eager(case, part, monkeypatch):
    core = make(case, torch.float32, kernel="native")
    inputs, state, _ = data(core, case, torch.float32)
    name, layer = next((name, module) for name, module in core.named_modules() if name.endswith(part))
    weight = "weight_hh_l0" if part == "rnn" else "weight"
    torch.nn.utils.prune.l1_unstructured(layer, weight, amount=0.5)
    calls = used(monkeypatch)
    for _ in range(2):  # its weight is computed anew each time
        core(inputs, state)[0].sum().backward()
    assert not calls
    torch.nn.utils.prune.remove(layer, weight)
    core(inputs, state)
    assert calls
    calls.clear()
    parent = core.get_submodule(name.rpartition(".")[0])
    other = type(f"My{type(layer).__name__}", (type(layer),), {"__module__": "mine"})
    changed = copy.copy(layer)
    changed.__class__ = other
    setattr(parent, name.rpartition(".")[2], changed)
    core(inputs, state)
    assert not calls


@needs_native
@pytest.mark.parametrize("sizes", [dict(num_heads=1, head_size=3), dict(num_heads=3, head_size=10)])
def test_layer_norm_of_large_numbers(sizes):
    core = make("rmc usual", torch.float32, **sizes)
    with torch.no_grad():
        core.blocks[0].qkv.bias.add_(300)
    arrays = data(core, "rmc usual", torch.float32)
    found = {kernel: results(core, kernel, *arrays)["outputs"] for kernel in ("native", "eager")}
    exact = results(core.double(), "eager", *(array.double() if array.is_floating_point() else array for array in arrays))
    wrong = {kernel: (outputs - exact["outputs"]).abs().max() for kernel, outputs in found.items()}
    assert wrong["native"] < 4 * wrong["eager"]


@needs_native
@pytest.mark.parametrize("case", USUAL)
def test_what_the_kernel_does_not_take_goes_to_eager(case, monkeypatch):
    core, calls = make(case, torch.float32, kernel="native"), used(monkeypatch)
    inputs, state, starts = data(core, case, torch.float32)
    with pytest.raises((RuntimeError, ValueError)):
        core(inputs, state.double())
    with pytest.raises(RuntimeError):
        core(inputs, state[:2])
    with pytest.raises((RuntimeError, IndexError)):
        core(inputs, state, starts[:, :2])
    half = copy.deepcopy(core).bfloat16()
    # torch's own LSTM refuses bfloat16 on a processor without it
    refused = contextlib.suppress(RuntimeError) if case == "lstm usual" else contextlib.nullcontext()
    with refused:
        assert half(inputs.bfloat16(), state.bfloat16())[0].dtype == torch.bfloat16
    with refused, torch.autocast("cpu", torch.bfloat16):
        core(inputs, state)
    core.inspect(inputs, state)
    assert not calls
    core(inputs, state, starts)
    assert calls


@needs_native
def test_lstm_leaves_to_torch_what_torch_does_as_fast(monkeypatch):
    core, calls = make("lstm usual"), used(monkeypatch)
    inputs, state, starts = data(core, "lstm usual")
    assert core.kernel == "auto"
    whole = [core(inputs, state)[0], core(inputs, state, torch.zeros_like(starts))[0]]
    assert not calls
    core(inputs, state, starts)
    assert len(calls) == 1
    core.kernel = "native"
    for expected in whole:
        torch.testing.assert_close(core(inputs, state)[0], expected, rtol=0, atol=1e-12)
    assert len(calls) == 3


@needs_native
def test_dropout_goes_to_eager_while_it_drops(monkeypatch):
    core, calls = make("rims usual", kernel="native", dropout=0.5), used(monkeypatch)
    arrays = data(core, "rims usual")
    assert not core(*arrays)[0].equal(core(*arrays)[0])
    assert not calls
    core.eval()
    assert core(*arrays)[0].equal(core(*arrays)[0])
    assert calls


@needs_native
@pytest.mark.parametrize("case", USUAL)
def test_a_saved_core_depends_on_no_kernel(case):
    core = make(case, kernel="native")
    assert pickle.loads(pickle.dumps(core)).kernel == "native"
    other = make(case, kernel="eager")
    other.load_state_dict(core.state_dict())


@needs_native
@pytest.mark.parametrize("case", ["rmc usual", "rims usual", "brims usual"])
def test_decisions_hold_for_a_rollout_and_weights_do_not(case, monkeypatch):
    core, calls = make(case, kernel="native"), used(monkeypatch)
    inputs, state, starts = data(core, case)
    looks, has_plain_modules = [], Core.has_plain_modules
    monkeypatch.setattr(Core, "has_plain_modules", lambda self: looks.append(True) or has_plain_modules(self))
    decisions = dispatch.Decisions()

    def check():
        with torch.no_grad():
            with decisions:
                found = [core(inputs[t : t + 1], state, starts[t : t + 1]) for t in range(3)]
            for t in range(3):
                torch.testing.assert_close(found[t], core(inputs[t : t + 1], state, starts[t : t + 1]), rtol=0, atol=0)

    check()
    assert len(looks) == 1 + 3
    assert len(calls) == 6
    others = {name: value + 0.1 for name, value in core.state_dict().items()}
    before = core(inputs, state)[0]
    for change in (
        lambda: core.load_state_dict(others),
        lambda: [setattr(parameter, "data", parameter.data * 1.1) for parameter in core.parameters()],
        lambda: [parameter.add_(0.1) for parameter in core.parameters()],
    ):
        with torch.no_grad():
            change()
        check()
        assert not torch.allclose(core(inputs, state)[0], before)
    with decisions:
        core(inputs, state)[0].sum().backward()  # nothing is kept while gradients are recorded
    assert all(parameter.grad is not None for name, parameter in core.named_parameters() if name.endswith("weight"))


class ScaledMlpRMC(RMC):
    def _mlp(self, rows):
        return 2 * super()._mlp(rows)


class LeakyLSTM(LSTM):
    def _cell(self, x, parts, weights):
        return 0.5 * super()._cell(x, parts, weights)


class LeakyGRU(GRU):
    def _cell(self, x, parts, weights):
        return 0.5 * super()._cell(x, parts, weights)


class ScaledRIMs(RIMs):
    def advance(self, *arguments):
        output, state = super().advance(*arguments)
        return output, 0.5 * state


class Mixin:
    def _mlp(self, rows):
        return 2 * rows


class MixedRMC(Mixin, RMC):
    pass


class OtherLoop(Core):
    def unroll(self, step, inputs, state, starts=None):
        outputs, state = super().unroll(step, inputs, state, starts)
        return 2 * outputs, state


class LoopedRMC(RMC, OtherLoop):
    pass


def decaying(cls):
    """A subclass with a step of its own."""

    def step(self, x, state):
        output, state = cls.step(self, x, state)
        return output, 0.5 * state

    return type(f"Decaying{cls.__name__}", (cls,), {"step": step, "__module__": "mine"})


OVERRIDING = [ScaledMlpRMC, LeakyLSTM, LeakyGRU, ScaledRIMs, MixedRMC, *map(decaying, (RMC, LSTM, RIMs, BRIMs))]


@needs_native
@pytest.mark.parametrize("cls", [*OVERRIDING, LoopedRMC], ids=lambda cls: cls.__name__)
def test_a_subclass_that_overrides_what_a_kernel_computes_gets_eager(cls, monkeypatch):
    core, calls = cls(INPUT, kernel="native").double(), used(monkeypatch)
    inputs, state, starts = torch.randn(5, 3, INPUT).double(), torch.randn(3, core.state_size).double(), torch.rand(5, 3) < 0.3
    core(inputs, state, starts)
    assert not calls
    assert core.is_modified()


@needs_native
@pytest.mark.parametrize("cls", OVERRIDING, ids=lambda cls: cls.__name__)
def test_a_subclass_that_overrides_something_acts_as_it_trains(cls):
    core = cls(INPUT, kernel="native").double()
    inputs, state, starts = torch.randn(5, 3, INPUT).double(), torch.randn(3, core.state_size).double(), torch.rand(5, 3) < 0.3
    trained, last = core(inputs, state, starts)
    acting = state
    for t in range(len(inputs)):
        output, acting = core(inputs[t : t + 1], acting, starts[t : t + 1])
        torch.testing.assert_close(output[0], trained[t], rtol=0, atol=1e-12)
    torch.testing.assert_close(acting, last, rtol=0, atol=1e-12)
    torch.testing.assert_close(core.unroll(core.step, inputs, state, starts)[0], trained, rtol=0, atol=1e-12)


class NamedRMC(RMC):
    """A subclass that changes nothing that a kernel computes."""

    size_arguments = ("head_size",)
    colour: str = "green"

    def __init__(self, input_size: int, **kwargs):
        super().__init__(input_size, num_slots=3, **kwargs)

    def initial_state(self, batch_size):
        return 0.5 * super().initial_state(batch_size)

    def norm(self):
        return self.project.weight.norm()


@needs_native
def test_a_subclass_that_overrides_nothing_keeps_its_kernel(monkeypatch):
    core, calls = NamedRMC(INPUT).double(), used(monkeypatch)
    assert not core.is_modified()
    inputs, state, starts = torch.randn(5, 3, INPUT).double(), torch.randn(3, core.state_size).double(), torch.rand(5, 3) < 0.5
    found, expected = (results(core, kernel, inputs, state, starts) for kernel in ("native", "eager"))
    assert len(calls) == 1
    assert_same(found, expected, 1e-11)


@needs_native
@pytest.mark.parametrize(
    ("case", "part", "method"),
    [
        ("rmc usual", "", "_mlp"),
        ("rmc usual", "", "forward"),
        ("rmc usual", "mlp.1", "forward"),
        ("rmc usual", "blocks.0", "attend"),
        ("rims usual", "layers.0.cells", "forward"),
        ("brims usual", "layers.1.input_attention", "embed"),
        ("gru usual", "", "_cell"),
        ("lstm usual", "rnn", "forward"),
    ],
)
def test_a_method_replaced_on_an_instance_gets_eager(case, part, method, monkeypatch):
    core, calls = make(case, kernel="native"), used(monkeypatch)
    inputs, state, starts = data(core, case)
    module, replaced = core.get_submodule(part), []
    original = getattr(module, method)
    setattr(module, method, lambda *arguments: replaced.append(True) or original(*arguments))
    core(inputs, state, starts if part != "rnn" else None)
    assert not calls or (method == "forward" and not part)  # a replaced forward of the core may call the original one
    assert replaced
    replaced.clear()
    core(inputs[:1], state)  # acting
    assert replaced


@needs_native
@pytest.mark.parametrize("case", USUAL)
def test_forward_mode_derivatives(case):
    core = make(case, kernel="native")
    inputs, state, starts = data(core, case)
    direction = torch.randn_like(inputs)
    outputs = core(inputs.requires_grad_(), state, starts)[0]
    weights = torch.randn_like(outputs)
    (slopes,) = torch.autograd.grad((outputs * weights).sum(), inputs)
    with forward_ad.dual_level(), torch.no_grad():
        dual = core(forward_ad.make_dual(inputs.detach(), direction), state, starts)[0]
        tangent = forward_ad.unpack_dual(dual).tangent
    jvp = torch.func.jvp(lambda x: core(x, state, starts)[0], (inputs.detach(),), (direction,))[1]
    for found in (tangent, jvp):
        torch.testing.assert_close((found * weights).sum(), (slopes * direction).sum(), rtol=1e-9, atol=1e-9)


def lstm_call(**changes):
    """The arguments of one call of the LSTM's kernel."""
    width = 4
    arguments = dict(
        kernel=calling.Kernel("lstm", cpu_rnn.Sizes(width=width), 1),
        inputs=dict(from_input=torch.randn(3, 2, 4 * width)),
        state=torch.randn(2, 2 * width),
        initial_state=None,
        starts=None,
        parameters=dict(weight_hh=torch.randn(4 * width, width), bias_hh=torch.randn(4 * width)),
    )
    arguments |= changes
    return arguments | dict(parameters=calling.Parameters(arguments["parameters"]))


class WiderSizes(ctypes.Structure):
    _fields_ = [("width", ctypes.c_int64), ("more", ctypes.c_int64)]


@needs_native
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(kernel=calling.Kernel("lstm", WiderSizes(width=4), 1)), "bytes of the structure Sizes: 16 in Python, 8 in C"),
        (dict(inputs=dict(rows=torch.randn(3, 2, 16))), "input 2: 'rows' in Python, 'from_input' in C"),
        (dict(inputs=dict(from_input=torch.randn(3, 2, 15))), "elements of input 'from_input': 90 in Python, 96 in C"),
        (dict(state=torch.randn(2, 4)), "elements of input 'state': 8 in Python, 16 in C"),
        (dict(starts=torch.zeros(3, 2, dtype=torch.bool)), "elements of input 'initial_state': 0 in Python, 16 in C"),
        (dict(parameters=dict(weight_hh=torch.randn(16, 4))), "parameter 'bias_hh' is missing"),
        (
            dict(parameters=dict(bias_hh=torch.randn(16), weight_hh=torch.randn(16, 4))),
            "parameter 0: 'bias_hh' in Python, 'weight_hh' in C",
        ),
        (
            dict(parameters=dict(weight_hh=torch.randn(16, 4), bias_hh=torch.randn(16), more=torch.randn(1))),
            "number of parameters: 3 in Python, 2 in C",
        ),
        (
            dict(parameters=dict(weight_hh=torch.randn(16, 3), bias_hh=torch.randn(16))),
            "elements of parameter 'weight_hh': 48",
        ),
    ],
)
def test_python_and_cpp_that_disagree_are_stopped(changes, message):
    assert calling.unroll(**lstm_call()).shape == (3, 2, 8)
    with pytest.raises(RuntimeError, match=f"Python and the C\\+\\+ kernel lstm disagree about {message}"):
        calling.unroll(**lstm_call(**changes))


@needs_native
@pytest.mark.parametrize("name", ["_Call", "_Gradients"])
def test_structures_of_another_size_are_stopped(name, monkeypatch):
    arguments = lstm_call()
    arguments["state"].requires_grad_()
    states = calling.unroll(**arguments)
    structure = getattr(calling, name)
    longer = type(name, (structure,), {"_fields_": [("more", ctypes.c_int64)]})
    monkeypatch.setattr(calling, name, longer)
    with pytest.raises(RuntimeError, match=f"disagree about bytes of the structure {name[1:]}: "):
        states.sum().backward()


@needs_native
def test_layer_sizes_of_another_size_are_stopped():
    core = make("rims usual", kernel="native")
    inputs, state, _ = data(core, "rims usual")
    sizes = cpu_rims._sizes(core, [core.layer(0)])
    sizes.layer_struct_size -= 8
    with pytest.raises(
        RuntimeError, match="kernel rims_lstm disagree about bytes of the structure LayerSizes: 56 in Python, 64"
    ):
        calling.unroll(
            calling.Kernel("rims_lstm", sizes, 1), dict(input_rows=inputs), state, None, None, calling.Parameters({})
        )


@pytest.mark.parametrize("case", ["rmc usual", "rims usual", "brims usual"])
def test_the_compiler_traces_a_core_as_one_graph(case):
    core = make(case)
    inputs, state, starts = data(core, case)
    compiled = torch.compile(core, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(inputs, state, starts), core(inputs, state, starts), rtol=0, atol=1e-11)
