"""RIMs and BRIMs against numbers from their authors' own code, and what their arguments mean."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from rmc_rl.agents.cores import BRIMs, Core, RIMs, brims_from_official, rims_from_dido, rims_from_official
from rmc_rl.agents.cores.kernels.cpu import library
from rmc_rl.agents.cores.published_weights import brims_parameters, dido_parameters, official_parameters
from rmc_rl.agents.cores.rims_layer import InputAttention
from rmc_rl.errors import UsageError

REFERENCE = Path(os.environ.get("RMC_RL_REFERENCE") or Path(__file__).parent / "reference")
CASES = sorted(path for folder in ("rims", "brims") for path in (REFERENCE / folder).glob("*.json"))
# float type -> (largest absolute error of outputs, largest error of a gradient relative to its largest entry)
TOLERANCES = {torch.float64: (1e-10, 1e-9), torch.float32: (5e-5, 1e-4)}


class Case:
    """One case of the reference, in our names and shapes."""

    def __init__(self, path: Path):
        self.info = json.loads(path.read_text())
        with np.load(path.with_suffix(".npz")) as arrays:
            self.arrays = dict(arrays)
        self.config = self.info["config"]
        self.variant = {"official": "official", "atari": "atari", "dido": "dido"}.get(self.info["variant"])
        self.layers = [f"/{index}" for index in range(len(self.config["nhid"]))] if self.variant is None else [""]
        self.lstm = self.config.get("rnn_cell") == "LSTM" if self.variant == "dido" else not self.config.get("do_gru")

    def under(self, prefix: str) -> dict[str, np.ndarray]:
        return {name.removeprefix(prefix): array for name, array in self.arrays.items() if name.startswith(prefix)}

    def core(self) -> Core:
        if self.variant is None:
            return brims_from_official(self.config, self.under("w/"))
        if self.variant == "dido":
            return rims_from_dido(self.config, self.under("w/"))
        return rims_from_official(self.config, self.under("w/"), self.variant)

    def states(self, prefix: str, axes: int) -> np.ndarray:
        """``h`` and ``c`` of all layers as one flat array; a GRU of ours has no ``c``."""
        parts = [self.arrays[f"{prefix}{part}{layer}"] for layer in self.layers for part in self.parts(prefix)]
        return np.concatenate([part.reshape(*part.shape[:axes], -1) for part in parts], axis=-1)

    def parts(self, prefix: str) -> list[str]:
        names = ["hx", "cx"] if self.lstm else ["hx"]
        return names if prefix == "out/" else [f"{name}0" for name in names]

    def looks(self, name: str) -> list[tuple[str, str]]:
        """Our name of what is looked at in each layer, and the name there."""
        return [(name if len(self.layers) == 1 else f"{name}_{index}", layer) for index, layer in enumerate(self.layers)]

    def parameter_gradients(self) -> dict[str, torch.Tensor]:
        # a parameter that does not influence the result has no gradient there: zeros, of the same shape
        found = {name: self.arrays.get(f"grad/w/{name}", np.zeros(array.shape)) for name, array in self.under("w/").items()}
        if self.variant == "dido":
            return dido_parameters(found)
        if self.variant is None:
            return brims_parameters(found, self.config["num_blocks"])
        communication = self.config.get("step_att", True)
        return official_parameters(found, self.config["num_blocks"], self.variant == "official", communication)


def test_reference_cases_are_there():
    for folder in ("rims", "brims"):
        assert [path for path in CASES if path.parent.name == folder], f"no case in {REFERENCE / folder}"


def close(name, value, expected, error):
    worst = np.abs(value.detach().double().numpy() - expected).max()
    assert worst <= error, (name, worst)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
@pytest.mark.parametrize("unrolled", ["forward native", "forward eager", "step"])
def test_equals_the_authors(path, dtype, unrolled, monkeypatch):
    case = Case(path)
    output_error, gradient_error = TOLERANCES[dtype]
    core = case.core().to(dtype)
    core.kernel = unrolled.rpartition(" ")[2] if unrolled != "step" else "eager"
    if core.kernel == "native" and library.why_not():
        pytest.skip(f"no native kernel: {library.why_not()}")
    if case.info.get("tie_at_step_0"):  # ties are broken otherwise there: take the choice as given
        if core.kernel == "native":
            pytest.skip("the kernel's choice cannot be replaced")
        choose_as_stored(monkeypatch, core, case)

    x = torch.tensor(case.arrays["in/x"], dtype=dtype).requires_grad_()
    state = torch.tensor(case.states("in/", 1), dtype=dtype).requires_grad_()
    if unrolled != "step":
        outputs, last = core(x, state)
    else:
        looks = core.inspect(x, state)
        outputs, last = looks["output"], looks["state"][-1]
        close("state", looks["state"], case.states("out/", 2), output_error)
        for name, layer in case.looks("active") if not case.info.get("tie_at_step_0") else ():
            assert np.array_equal(looks[name].numpy(), case.arrays[f"out/mask{layer}"] > 0.5), name
        for name, layer in case.looks("input_attention"):
            if f"aux/input_attention{layer}" in case.arrays:
                close(name, looks[name].mean(2), case.arrays[f"aux/input_attention{layer}"], output_error)
        if "aux/comm_attention" in case.arrays:
            close("comm_attention", looks["comm_attention"].transpose(1, 2), case.arrays["aux/comm_attention"], output_error)
    expected = case.arrays[f"out/hx{case.layers[-1]}"]
    close("output", outputs, expected.reshape(*expected.shape[:2], -1), output_error)
    close("last state", last, case.states("out/", 2)[-1], output_error)

    (outputs**2).sum().backward()
    gradients = {"x": (x.grad, case.arrays["grad/in/x"]), "state": (state.grad, case.states("grad/in/", 1))}
    parameters = dict(core.named_parameters())
    converted = case.parameter_gradients()
    assert set(converted) == set(parameters)
    gradients |= {name: (parameters[name].grad, converted[name].numpy()) for name in parameters}
    for name, (gradient, numbers) in gradients.items():
        scale = np.abs(numbers).max()
        gradient = torch.zeros(numbers.shape) if gradient is None else gradient
        close(name, gradient, numbers, gradient_error * (scale if scale > 1e-12 else 1))


def choose_as_stored(monkeypatch, core, case):
    """Let the input attention take the stored choice of active modules."""
    calls = {}

    def forward(self, *arguments):
        read, _, weights = original(self, *arguments)
        layer = [module.input_attention for module in core.layers].index(self)
        calls[layer] = calls.get(layer, -1) + 1
        masks = case.arrays[f"out/mask{case.layers[layer]}"]
        return read, torch.tensor(masks[calls[layer]] > 0.5), weights

    original = InputAttention.forward
    monkeypatch.setattr(InputAttention, "forward", forward)


def test_equal_scores_choose_the_first_modules():
    core = RIMs(5, num_modules=6, num_active=2, initial_state="zeros")
    looks = core.inspect(torch.randn(1, 3, 5), core.initial_state(3))
    assert looks["active"][0].tolist() == [[True, True, False, False, False, False]] * 3
    brims = BRIMs(5, initial_state="zeros")
    looks = brims.inspect(torch.randn(1, 2, 5), brims.initial_state(2))
    assert looks["active_0"][0].tolist() == [[True] * 4 + [False] * 2] * 2
    assert looks["active_1"][0].tolist() == [[True, True, False]] * 2


def test_modules_start_apart_and_choose_by_the_input():
    torch.manual_seed(0)
    core = RIMs(5)
    modules = core.initial_state(1)[:, : core.output_size].view(6, -1)
    assert torch.cdist(modules, modules).fill_diagonal_(1).min() > 0.1
    active = core.inspect(10 * torch.randn(1, 64, 5), core.initial_state(64))["active"][0]
    assert len({tuple(row) for row in active.tolist()}) > 1


def test_a_zero_observation_is_not_the_null_row():
    torch.manual_seed(0)
    x = torch.zeros(1, 1, 5)
    embedded = RIMs(5)
    assert embedded.inspect(x, embedded.initial_state(1))["input_attention"][..., 0].sub(0.5).abs().min() > 1e-4
    plain = RIMs(5, embedding_size=0)
    assert plain.inspect(x, plain.initial_state(1))["input_attention"].eq(0.5).all()


def test_inactive_modules_keep_their_state():
    torch.manual_seed(0)
    core = RIMs(5, num_modules=4, num_active=1, module_size=3)
    before = torch.randn(8, core.state_size)
    looks = core.inspect(torch.randn(1, 8, 5), before)
    after, active = looks["state"][0].view(8, 2, 4, 3), looks["active"][0]
    kept = (after == before.view(8, 2, 4, 3)).all(-1).all(1)
    assert kept.equal(~active)
    assert active.sum(1).eq(1).all()


def test_what_inspect_shows():
    core = BRIMs(5, num_modules=[4, 2], num_active=[2, 1], module_size=[3, 5], cell="gru")
    looks = core.inspect(torch.randn(7, 8, 5), core.initial_state(8))
    assert looks["active_0"].shape == (7, 8, 4)
    assert looks["active_1"].shape == (7, 8, 2)
    assert looks["input_attention_0"].shape == (7, 8, 4, 4, 3)
    assert looks["input_attention_1"].shape == (7, 8, 4, 2, 2)
    assert looks["comm_attention_0"].shape == (7, 8, 4, 4, 4)
    assert looks["update_gate_0"].shape == looks["reset_gate_0"].shape == (7, 8, 4, 3)
    for name in ("input_attention_0", "comm_attention_1"):
        torch.testing.assert_close(looks[name].sum(-1), torch.ones_like(looks[name].sum(-1)))


@pytest.mark.parametrize("part", ["input_attention", "communication"])
def test_dropout_is_active_in_training_mode_alone(part):
    torch.manual_seed(0)
    core = RIMs(5, dropout=0.5)
    for other in {"input_attention", "communication"} - {part}:
        getattr(core.layers[0], other).dropout = 0
    data = torch.randn(3, 2, 5), core.initial_state(2)
    assert not torch.equal(core(*data)[0], core(*data)[0])
    core.eval()
    assert torch.equal(core(*data)[0], core(*data)[0])


def test_gates_of_the_cells_explain_their_states():
    torch.manual_seed(0)
    core = RIMs(5, num_modules=2, num_active=2, module_size=3, comm_heads=0)
    before = torch.randn(4, core.state_size)
    looks = core.inspect(torch.randn(1, 4, 5), before)
    (_, old), (h, c) = (state.view(4, 2, 2, 3).transpose(0, 1) for state in (before, looks["state"][0]))
    torch.testing.assert_close(looks["output_gate"][0] * torch.tanh(c), h)
    assert ((c - looks["forget_gate"][0] * old) / looks["input_gate"][0]).abs().max() <= 1 + 1e-5  # a tanh
    core = RIMs(5, num_modules=2, num_active=2, module_size=3, comm_heads=0, cell="gru")
    before = torch.randn(4, core.state_size)
    looks = core.inspect(torch.randn(1, 4, 5), before)
    old, new = (state.view(4, 2, 3) for state in (before, looks["state"][0]))
    assert ((new - looks["update_gate"][0] * old) / (1 - looks["update_gate"][0])).abs().max() <= 1 + 1e-5  # a tanh


def test_first_weights_pass_a_signal_on():
    torch.manual_seed(0)
    cells = RIMs(5).layers[0].cells.from_read
    assert cells.weight.std().item() == pytest.approx(0.88 / 64**0.5, rel=0.05)  # 0.88: of a normal cut at two deviations
    assert cells.bias.abs().max() == 0


def test_no_weights_between_modules():
    def cells(modules):
        core = RIMs(5, num_modules=modules, num_active=1)
        return sum(parameter.numel() for name, parameter in core.named_parameters() if "cells" in name)

    assert cells(8) == 2 * cells(4)  # a dense matrix would be four times as large


@pytest.mark.parametrize(
    ("cls", "kwargs", "message"),
    [
        (RIMs, dict(num_modules=0), "num_modules must be a whole number of at least 1, got 0"),
        (RIMs, dict(num_active=7), "num_active must be at most num_modules, 6, got 7"),
        (RIMs, dict(num_modules=[6]), r"num_modules must be a whole number of at least 1, got \[6\]"),
        (RIMs, dict(cell="rnn"), "unknown cell 'rnn'; did you mean 'gru'|unknown cell 'rnn'; valid: gru, lstm"),
        (RIMs, dict(variant="Atary"), "unknown variant 'Atary'; did you mean 'atari'"),
        (RIMs, dict(variant="atari", input_copies=2), "variant 'atari' needs input_copies 1, got 2"),
        (RIMs, dict(input_heads=3), r"input_heads must divide the 64 numbers that a module reads \(read_size\), got 3"),
        (RIMs, dict(dropout=1), "dropout must be a finite number at least 0 and below 1, got 1"),
        (RIMs, dict(dropout=float("nan")), "dropout must be a finite number at least 0 and below 1, got nan"),
        (RIMs, dict(initial_state="zero"), "unknown initial_state 'zero'; did you mean 'zeros'"),
        (BRIMs, dict(num_modules=6), "num_modules must be a list, one number for each layer, got 6"),
        (BRIMs, dict(num_active=[4]), r"num_active must have 2 numbers, as num_modules has, got \[4\]"),
        (BRIMs, dict(module_size=[16, 1.5]), r"each number in module_size must be a whole number of at least 1, got 1\.5"),
        (BRIMs, dict(top_down=1), "top_down must be true or false, got 1"),
        (BRIMs, dict(variant="dido"), "variant 'dido' needs top_down false, got True"),
    ],
)
def test_rules(cls, kwargs, message):
    with pytest.raises(UsageError, match=message):
        cls(6, **kwargs)


def test_weights_must_fit():
    case = Case(next(path for path in CASES if path.parent.name == "brims"))
    weights = case.under("w/")
    name = "bc_lst.0.inp_att.GLN_qs.w"
    with pytest.raises(UsageError, match=r"'inp_att\.GLN_qs\.w' is missing"):
        brims_from_official(case.config, {other: array for other, array in weights.items() if other != name})
    with pytest.raises(UsageError, match=r"'layers\.0\.input_attention\.query\.weight' must have shape"):
        brims_from_official(case.config, weights | {name: weights[name][:, :-1]})
    with pytest.raises(UsageError, match=r"only the parameters of the original, got \['extra'\]"):
        brims_from_official(case.config, weights | {"bc_lst.0.extra": weights[name]})
    with pytest.raises(UsageError, match=r"only the parameters of the layers, got \['encoder\.weight'\]"):
        brims_from_official(case.config, weights | {"encoder.weight": weights[name]})
    with pytest.raises(UsageError, match=r"missing, got \['topk'\]"):
        brims_from_official({key: value for key, value in case.config.items() if key != "topk"}, weights)
    with pytest.raises(UsageError, match=r"num_blocks and topk must have \d numbers, as nhid has"):
        brims_from_official(case.config | dict(topk=[1]), weights)
    with pytest.raises(UsageError, match="num_blocks must divide a matrix"):
        brims_from_official(case.config | dict(num_blocks=[5] * len(case.config["nhid"])), weights)
