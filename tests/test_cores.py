"""The contract every core keeps, whatever it computes."""

import copy
import inspect
import pickle
import pydoc
import re
from collections.abc import Sequence

import gymnasium
import numpy as np
import pytest
import torch

from rmc_rl import MlpMemoryPolicy, MultiInputMemoryPolicy, RecurrentPPO
from rmc_rl.agents.cores import Core, core_class, core_names, make_core, register_core, registry, scalars
from rmc_rl.agents.cores.kernels.cpu import library
from rmc_rl.errors import UsageError

INPUT, TIME, BATCH = 6, 7, 4
# every registered core as it comes, and variants that take other paths
CASES = {
    **{name: (name, {}) for name in core_names()},
    "rmc matrix memory-gate mean": ("rmc", dict(num_entities=2, gate_style="memory", readout="mean", num_blocks=2)),
    "rmc no-gate attention": ("rmc", dict(gate_style="none", readout="attention", num_slots=3, key_size=5)),
    "lstm learned": ("lstm", dict(width=5, num_layers=2, initial_state="learned")),
    "gru two layers": ("gru", dict(width=5, num_layers=2)),
    "framestack one": ("framestack", dict(num_frames=1)),
    "framestack long": ("framestack", dict(num_frames=10)),
    "gtrxl short": ("gtrxl", dict(memory_length=2, num_layers=3, num_heads=1, head_size=5, mlp_size=7)),
    "linear_attention without positions": ("linear_attention", dict(positions=False, num_layers=1, num_heads=3, head_size=5)),
    "delta_net without gates": ("delta_net", dict(gated=False, num_layers=1, num_heads=3, head_size=5)),
    "aft without positions": ("aft", dict(positions=False, width=5, num_layers=3)),
    "lru units": ("lru", dict(width=5, num_units=3, num_layers=3, r_min=0.0)),
    "attention short": ("attention", dict(memory_length=2, positions=False, num_layers=3, num_heads=1, head_size=5)),
    "nbrc learned": ("nbrc", dict(width=5, initial_state="learned")),
    "titans two layers": ("titans", dict(num_layers=2, num_heads=1, head_size=3, hidden_size=5)),
    "mingru learned": ("mingru", dict(width=5, num_layers=3, initial_state="learned")),
    "ntm heads": ("ntm", dict(num_slots=5, slot_size=3, read_heads=2, write_heads=3)),
    "rims gru": ("rims", dict(cell="gru", comm_heads=0, initial_state="zeros")),
    "rims atari": ("rims", dict(variant="atari")),
    "rims dido": ("rims", dict(variant="dido", input_heads=2)),
    "rims copies": ("rims", dict(input_copies=3, embedding_size=0)),
    "brims three layers": ("brims", dict(num_modules=[3, 2, 4], num_active=[2, 1, 2], module_size=[4, 4, 4])),
    "brims masked": ("brims", dict(top_down=False, use_inactive=False, blocked_grad=True)),
    "rmc one slot": ("rmc", dict(num_slots=1, num_heads=1, head_size=3, mlp_layers=1)),
}
# and with each kernel: what is above takes the best there is
CASES |= {
    f"{name} {kernel}": (core, {**kwargs, "kernel": kernel})
    for name, (core, kwargs) in CASES.items()
    if core_class(core).kernel_family
    for kernel in ("eager", "native")
}


CASES |= {
    "gru standard": ("gru", dict(first_gates="standard")),
    "lstm standard": ("lstm", dict(first_gates="standard")),
    "rmc uniform": ("rmc", dict(first_gates="uniform")),
}


@pytest.fixture(params=CASES, name="core")
def make(request) -> Core:
    torch.manual_seed(1)
    name, kwargs = CASES[request.param]
    if kwargs.get("kernel") == "native" and library.why_not():
        pytest.skip(f"no native kernel: {library.why_not()}")
    return make_core(name, INPUT, kwargs).double()


@pytest.fixture(name="data")
def make_data(core):
    torch.manual_seed(2)
    inputs = torch.randn(TIME, BATCH, core.input_size, dtype=torch.double)
    before = torch.randn(3, BATCH, core.input_size, dtype=torch.double)
    state = core(before, core.initial_state(BATCH))[1].detach()  # one that an episode reaches
    starts = torch.rand(TIME, BATCH) < 0.3
    starts[0, 0], starts[0, 3] = False, True
    assert starts[1:].any()
    return inputs, state, starts


def loop(core, inputs, state, starts):
    outputs = []
    for x, start in zip(inputs, starts, strict=True):
        state = torch.where(start.unsqueeze(-1), core.initial_state(len(state)), state)
        output, state = core.step(x, state)
        outputs.append(output)
    return torch.stack(outputs), state


def gradients(core, run, inputs, state):
    inputs, state = inputs.clone().requires_grad_(), state.clone().requires_grad_()
    core.zero_grad()
    outputs, last = run(inputs, state)
    weights = torch.linspace(-1, 1, outputs.numel(), dtype=outputs.dtype).view_as(outputs)
    ((outputs * weights).sum() + (last**2).sum()).backward()
    found = {name: parameter.grad.clone() for name, parameter in core.named_parameters()}
    return found | {"inputs": inputs.grad} | ({"state": state.grad} if core.state_size else {})


def test_sizes(core, data):
    inputs, state, starts = data
    outputs, last = core(inputs, state, starts)
    assert outputs.shape == (TIME, BATCH, core.output_size)
    assert last.shape == state.shape == (BATCH, core.state_size)
    assert core.initial_state(3).shape == (3, core.state_size)


def test_forward_equals_a_loop_over_step(core, data):
    inputs, state, starts = data
    torch.testing.assert_close(core(*data), loop(core, *data), rtol=0, atol=1e-12)
    forward = gradients(core, lambda x, s: core(x, s, starts), inputs, state)
    looped = gradients(core, lambda x, s: loop(core, x, s, starts), inputs, state)
    for name, gradient in forward.items():
        torch.testing.assert_close(gradient, looped[name], rtol=0, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


def test_without_starts_no_episode_begins(core, data):
    inputs, state, starts = data
    torch.testing.assert_close(core(inputs, state), core(inputs, state, torch.zeros_like(starts)), rtol=0, atol=0)


def test_a_start_inside_a_sequence_equals_a_new_sequence(core, data):
    inputs, state, _ = data
    starts = torch.zeros(TIME, BATCH, dtype=torch.bool)
    starts[3, 1] = True
    outputs, last = core(inputs, state, starts)
    fresh, fresh_last = core(inputs[3:, 1:2], core.initial_state(1))
    torch.testing.assert_close(outputs[3:, 1:2], fresh, rtol=0, atol=1e-12)
    torch.testing.assert_close(last[1:2], fresh_last, rtol=0, atol=1e-12)
    unbroken, _ = core(inputs, state)
    torch.testing.assert_close(outputs[:3], unbroken[:3], rtol=0, atol=1e-12)
    if core.state_size:
        assert not torch.allclose(outputs[3:, 1], unbroken[3:, 1])


def test_batch_rows_do_not_leak_into_each_other(core, data):
    inputs, state, starts = data
    outputs, _ = core(inputs, state, starts)
    inputs = inputs.clone()
    inputs[:, 2] += 1
    changed, _ = core(inputs, state, starts)
    others = [0, 1, 3]
    torch.testing.assert_close(changed[:, others], outputs[:, others], rtol=0, atol=1e-12)
    assert not torch.allclose(changed[:, 2], outputs[:, 2])


def test_gradient_reaches_every_parameter(core, data):
    inputs, state, starts = data
    for name, gradient in gradients(core, lambda x, s: core(x, s, starts), inputs, state).items():
        # the port's one key bias for both rows cancels in the softmax over them, there as well
        if getattr(core, "variant", None) != "dido" or not name.endswith("key.0.bias"):
            assert gradient.abs().max() > 1e-8, name


def test_one_step_of_one_row(core):
    x = torch.randn(1, 1, core.input_size, dtype=torch.double)
    outputs, _ = core(x, core.initial_state(1), torch.ones(1, 1, dtype=torch.bool))
    torch.testing.assert_close(outputs[0], core.step(x[0], core.initial_state(1))[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("time", [1, 3])
@pytest.mark.parametrize("started", [False, True])
def test_a_batch_of_no_rows(core, time, started):
    starts = torch.zeros(time, 0, dtype=torch.bool) if started else None
    inputs = torch.randn(time, 0, core.input_size, dtype=torch.double)
    for run in (lambda x, s: core(x, s, starts), lambda x, s: loop(core, x, s, torch.zeros(time, 0, dtype=torch.bool))):
        x, state = inputs.clone().requires_grad_(), core.initial_state(0).detach().clone().requires_grad_()
        outputs, last = run(x, state)
        assert outputs.shape == (time, 0, core.output_size)
        assert last.shape == (0, core.state_size)
        core.zero_grad()
        (outputs.sum() + last.sum()).backward()
        assert x.grad.shape == x.shape
        assert all(parameter.grad is None or not parameter.grad.any() for parameter in core.parameters())
        with torch.no_grad():
            assert run(x, state)[0].shape == outputs.shape


def test_deterministic_in_training_mode(core, data):
    core.train()
    torch.testing.assert_close(core(*data), core(*data), rtol=0, atol=0)


def test_float32_follows_float64(core, data):
    inputs, state, starts = data
    single = copy.deepcopy(core).float()
    assert single.initial_state(1).dtype == torch.float32
    outputs, _ = single(inputs.float(), state.float(), starts)
    torch.testing.assert_close(outputs.double(), core(*data)[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda core: pickle.loads(pickle.dumps(core))], ids=["deepcopy", "pickle"])
def test_copies_compute_the_same(core, data, copied):
    torch.testing.assert_close(copied(core)(*data), core(*data), rtol=0, atol=0)


def test_state_dict_round_trip(core, data):
    other = copy.deepcopy(core)
    for parameter in other.parameters():
        parameter.data.normal_()
    other.load_state_dict(core.state_dict())
    torch.testing.assert_close(other(*data), core(*data), rtol=0, atol=0)


def test_inspect_shows_what_forward_computes(core, data):
    looks = core.inspect(*data)
    outputs, last = core(*data)
    torch.testing.assert_close(looks["output"], outputs, rtol=0, atol=1e-12)
    torch.testing.assert_close(looks["state"][-1], last, rtol=0, atol=1e-12)
    assert all(value.shape[:2] == (TIME, BATCH) for value in looks.values())
    torch.testing.assert_close(core(*data), (outputs, last), rtol=0, atol=0)
    assert core._looks is None


@pytest.mark.cuda
@pytest.mark.filterwarnings("ignore:kernel=native is unavailable. there is no native kernel for cuda")  # all but the RMC
def test_cuda_copy(core, data):
    outputs, _ = copy.deepcopy(core).cuda()(*(tensor.cuda() for tensor in data))
    torch.testing.assert_close(outputs.cpu(), core(*data)[0], rtol=0, atol=1e-9)


def test_scalars_of_what_every_core_shows(core, data):
    found = scalars(core.inspect(*data))
    assert all(np.isfinite(value) and value >= 0 for value in found.values())
    shown = {name for name in core.inspect(*data) if re.search(r"(gate|attention|active)(_\d+)?$", name)}
    assert bool(found) == bool(shown)
    active = [value for name, value in found.items() if name.startswith("active")]
    if active:
        assert sum(active) == pytest.approx(sum(layer.sizes.num_active for layer in core.layers))


@pytest.mark.parametrize(
    ("name", "gate", "arguments"),
    [
        ("gru", "update_gate", dict(width=1000, num_layers=2)),
        ("lstm", "forget_gate", dict(width=1000, num_layers=2)),
        ("rmc", "forget_gate", dict(num_heads=10, head_size=100, num_slots=2, forget_bias=3.0)),
    ],
)
def test_uniform_gates_keep_their_content_for_different_times(name, gate, arguments):
    torch.manual_seed(0)
    core = make_core(name, INPUT, dict(arguments, first_gates="uniform"))
    looks = core.inspect(torch.zeros(1, 1, INPUT), torch.zeros(1, core.state_size))
    for gates in looks[gate].flatten(0, -2):
        quantiles = torch.quantile(gates, torch.tensor([0.1, 0.5, 0.9]))
        assert quantiles.tolist() == pytest.approx([0.1, 0.5, 0.9], abs=0.05)
        assert gates.min() > 0
        assert gates.max() < 1
    standard = make_core(name, INPUT, dict(arguments, first_gates="standard"))
    assert standard.inspect(torch.zeros(1, 1, INPUT), torch.zeros(1, core.state_size))[gate].std() < 0.05


def test_scalars():
    sure, even = torch.tensor([1.0, 0, 0, 0]), torch.full((4,), 0.25)
    looks = dict(
        forget_gate=torch.tensor([0.0, 0.5]),
        sure_attention=sure,
        even_attention=even,
        one_attention=torch.ones(3, 1),
        reset_gate=torch.tensor([True, False]),
        aggregate_state=torch.ones(2),
        active_2=torch.tensor([[[True, False], [True, True]]]),
        state=torch.ones(2),
    )
    assert scalars(looks) == pytest.approx(
        {
            "forget_gate": 0.25,
            "sure_attention_entropy": 0,
            "even_attention_entropy": np.log(4),
            "reset_gate": 0.5,
            "active_2/0": 1,
            "active_2/1": 0.5,
        }
    )


# what no argument of a type accepts
INVALID = {
    int: [0.5, 1.0, True, "4", -1, float("nan"), float("inf"), np.float32(2), [2], {}],
    float: [float("nan"), float("inf"), -float("inf"), True, "1", None, [1.0], np.float64("nan")],
    bool: [1, 0.0, "true", None],
    str: ["nothing", 3, None, ["auto"], True],
}
INVALID[int | None] = INVALID[int]
INVALID[Sequence[int]] = [6, "64", [], None, {6: 3}, *([3, value] for value in INVALID[int])]
ARGUMENTS = [
    (name, parameter) for name in core_names() for parameter in inspect.signature(core_class(name)).parameters.values()
]


@pytest.mark.parametrize(("name", "parameter"), ARGUMENTS, ids=lambda each: getattr(each, "name", each))
def test_every_argument_is_checked(name, parameter):
    for value in INVALID[parameter.annotation]:
        with pytest.raises(UsageError, match=rf"\b{parameter.name}\b"):
            core_class(name)(**{"input_size": INPUT, parameter.name: value})
    if parameter.annotation in (int, int | None) and parameter.default is not None:
        with pytest.raises(UsageError, match=parameter.name):
            core_class(name)(**{"input_size": INPUT, parameter.name: None})


@pytest.mark.parametrize("name", core_names())
def test_numpy_numbers_are_accepted_and_kept_as_python_numbers(name):
    numpy_types = {
        int: np.int64,
        int | None: np.int32,
        float: np.float32,
        Sequence[int]: lambda sizes: [*map(np.int16, sizes)],
    }
    parameters = list(inspect.signature(core_class(name)).parameters.values())[1:]
    kwargs = {
        parameter.name: numpy_types[parameter.annotation](2 if parameter.default is None else parameter.default)
        for parameter in parameters
        if parameter.annotation in numpy_types
    }
    kwargs |= {size: np.int64(8) for size in ("read_size",) if size in kwargs}
    for core in (make_core(name, np.int64(INPUT), kwargs), core_class(name)(np.int64(INPUT), **kwargs)):
        for part in core.modules():
            kept = [value for key, value in vars(part).items() if not key.startswith("_")]
            kept += [each for value in kept if isinstance(value, list | tuple) for each in value]
            assert not [value for value in kept if isinstance(value, np.generic)], type(part)
        core(torch.randn(2, 3, INPUT), core.initial_state(3))


@pytest.mark.parametrize("name", core_names())
def test_help_documents_every_argument(name):
    text = pydoc.render_doc(core_class(name), renderer=pydoc.plaintext)
    for parameter in inspect.signature(core_class(name)).parameters.values():
        assert parameter.kind is not parameter.VAR_KEYWORD
        assert text.count(f":param {parameter.name}:") == 1, parameter.name
        default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        ends = r"[,)\n]"  # from Python 3.13 on, a long signature has a line for each parameter
        assert re.search(rf"__init__\(.*\b{parameter.name}: [^=]*?{re.escape(default)}{ends}", text, re.DOTALL), parameter.name


def test_names_and_arguments_are_checked():
    hint = "if a module of yours registers it, import that module first or name it 'module:"
    with pytest.raises(UsageError, match=rf"unknown core 'rcm'; did you mean 'rmc'\? \({hint}rcm'"):
        make_core("rcm", INPUT)
    with pytest.raises(UsageError, match=rf"unknown core 'zzz'; valid: aft, .*, titans \({hint}zzz'"):
        make_core("zzz", INPUT)
    with pytest.raises(UsageError, match="unknown argument of core RMC 'num_slot'; did you mean 'num_slots'"):
        make_core("rmc", INPUT, dict(num_slot=2))
    with pytest.raises(
        UsageError, match="the module of core 'no_such_module:core' must be one that can be imported: ModuleNotFoundError"
    ):
        make_core("no_such_module:core", INPUT)
    with pytest.raises(UsageError, match="subclass of Core, got 3"):
        make_core(3, INPUT)
    with pytest.raises(UsageError, match=r"width must be a whole number of at least 1, got 0\.5"):
        make_core("memoryless", INPUT, dict(width=0.5))


def test_a_model_whose_core_is_unknown_says_to_import_its_module(tmp_path, monkeypatch):
    env = gymnasium.make("CartPole-v1")
    monkeypatch.setitem(registry._CORES, "mine", core_class("memoryless"))
    RecurrentPPO("MlpMemoryPolicy", env, n_steps=8, batch_size=8, policy_kwargs=dict(core="mine")).save(tmp_path / "model")
    monkeypatch.delitem(registry._CORES, "mine")
    with pytest.raises(UsageError, match=r"unknown core 'mine'.*import that module first or name it 'module:mine'"):
        RecurrentPPO.load(tmp_path / "model")
    # importing the module is enough, and so is naming it
    (tmp_path / "my_cores.py").write_text(
        "from rmc_rl.agents.cores import Memoryless, register_core\n@register_core('mine')\nclass Mine(Memoryless): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert type(make_core("my_cores:mine", INPUT)).__name__ == "Mine"
    assert type(RecurrentPPO.load(tmp_path / "model").policy.core).__name__ == "Mine"
    monkeypatch.delitem(registry._CORES, "mine")


@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_observations_that_numpy_sizes(name):
    space = gymnasium.spaces.MultiDiscrete([3, 4])  # its number of features is an integer of NumPy
    for policy, observations in ((MlpMemoryPolicy, space), (MultiInputMemoryPolicy, gymnasium.spaces.Dict(cells=space))):
        built = policy(observations, gymnasium.spaces.Discrete(2), lambda _: 0.0, core=name)
        assert type(built.core.input_size) is int


def test_a_name_is_registered_once():
    with pytest.raises(UsageError, match="a core's name must be new, got 'rmc'"):

        @register_core("rmc")
        class Other(Core):
            pass

    assert make_core("rmc", INPUT).__class__.__name__ == "RMC"
