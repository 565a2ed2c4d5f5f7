"""The RMC against numbers from DeepMind's own code, and what its arguments mean."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from rmc_rl.agents.cores import RMC, rmc_from_sonnet
from rmc_rl.agents.cores.kernels.cpu import library
from rmc_rl.agents.cores.published_weights import rmc_parameters
from rmc_rl.errors import UsageError

REFERENCE = Path(os.environ.get("RMC_RL_REFERENCE") or Path(__file__).parent / "reference")
CASES = sorted((REFERENCE / "rmc").glob("*.json"))
# float type -> (largest absolute error of outputs, largest error of a gradient relative to its largest entry)
TOLERANCES = {torch.float64: (1e-10, 1e-9), torch.float32: (5e-5, 1e-4)}


def load(path: Path) -> tuple[dict, dict[str, np.ndarray]]:
    with np.load(path.with_suffix(".npz")) as arrays:
        return json.loads(path.read_text()), dict(arrays)


def test_reference_cases_are_there():
    assert CASES, f"no case in {REFERENCE / 'rmc'}"


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
@pytest.mark.parametrize("unrolled", ["forward native", "forward eager", "step"])
def test_equals_sonnet(path, dtype, unrolled):
    case, arrays = load(path)
    output_error, gradient_error = TOLERANCES[dtype]
    weights = {name.removeprefix("w/"): array for name, array in arrays.items() if name.startswith("w/")}
    core = rmc_from_sonnet(case["config"], weights).to(dtype)

    x = torch.tensor(arrays["in/x"], dtype=dtype).flatten(2).requires_grad_()
    memory0 = torch.tensor(arrays["in/memory0"], dtype=dtype).flatten(1).requires_grad_()
    torch.testing.assert_close(
        core.initial_state(case["B"]), torch.tensor(arrays["aux/initial_state"], dtype=dtype).flatten(1), rtol=0, atol=0
    )
    if unrolled.startswith("forward"):
        core.kernel = unrolled.split()[-1]
        if core.kernel == "native" and library.why_not():
            pytest.skip(f"no native kernel: {library.why_not()}")
        outputs, last = core(x, memory0)
    else:
        looks = core.inspect(x, memory0)
        outputs, last = looks["output"], looks["state"][-1]
        compare = {"memory": looks["state"].view(arrays["out/memory"].shape)}
        if "out/input_gate" in arrays:
            compare |= {name: looks[name] for name in ("input_gate", "forget_gate")}
        for name, value in compare.items():
            expected = torch.tensor(arrays[f"out/{name}"], dtype=dtype)
            torch.testing.assert_close(value, expected, rtol=0, atol=output_error, msg=lambda m, n=name: f"{n}: {m}")
    torch.testing.assert_close(outputs, torch.tensor(arrays["out/output"], dtype=dtype), rtol=0, atol=output_error)
    torch.testing.assert_close(
        last.view(arrays["out/memory"].shape[1:]),
        torch.tensor(arrays["out/memory"][-1], dtype=dtype),
        rtol=0,
        atol=output_error,
    )

    (outputs**2).sum().backward()
    prefix = next(name for name in weights if name.endswith("mlp/linear_0/w")).removesuffix("mlp/linear_0/w")
    published = {name.removeprefix("grad/"): array for name, array in arrays.items() if name.startswith("grad/")}
    gradients = {"x": x.grad.view(arrays["in/x"].shape), "memory0": memory0.grad.view(arrays["in/memory0"].shape)}
    numbers = {name: published.pop(f"in/{name}") for name in gradients}
    # gradients are converted as weights are, each array exactly once
    converted = rmc_parameters(core, {name.removeprefix(f"w/{prefix}"): array for name, array in published.items()})
    numbers |= {name: tensor.numpy() for name, tensor in converted.items()}
    gradients |= {name: parameter.grad for name, parameter in core.named_parameters()}
    assert set(gradients) == set(numbers)
    for name, gradient in gradients.items():
        expected = numbers[name]
        error = np.abs(gradient.detach().double().numpy() - expected).max()
        scale = np.abs(expected).max()
        assert error <= gradient_error * (scale if scale > 1e-12 else 1), (name, error, scale)


def test_memory_starts_from_the_identity():
    wide = RMC(3, num_slots=2, num_heads=1, head_size=4).initial_state(2).view(2, 2, 4)
    assert wide.tolist() == [[[1, 0, 0, 0], [0, 1, 0, 0]]] * 2
    many = RMC(3, num_slots=3, num_heads=1, head_size=2).initial_state(1).view(3, 2)
    assert many.tolist() == [[1, 0], [0, 1], [0, 0]]


def test_what_inspect_shows():
    core = RMC(
        6, num_slots=3, num_heads=2, head_size=5, num_blocks=2, num_entities=2, gate_style="memory", readout="attention"
    )
    looks = core.inspect(torch.randn(4, 7, 6), core.initial_state(7))
    assert looks["attention"].shape == (4, 7, 2, 2, 3, 5)
    assert looks["input_gate"].shape == looks["forget_gate"].shape == (4, 7, 3, 1)
    assert looks["read_attention"].shape == (4, 7, 2, 3)
    for name in ("attention", "read_attention"):
        torch.testing.assert_close(looks[name].sum(-1), torch.ones_like(looks[name].sum(-1)))


def test_readouts():
    torch.manual_seed(0)
    cores = {readout: RMC(3, num_slots=2, readout=readout) for readout in ("flatten", "mean", "attention")}
    assert {readout: core.output_size for readout, core in cores.items()} == {"flatten": 128, "mean": 64, "attention": 64}
    state = torch.randn(5, 128)
    output, memory = cores["flatten"].step(torch.randn(5, 3), state)
    assert output.equal(memory)
    output, memory = cores["mean"].step(torch.randn(5, 3), state)
    torch.testing.assert_close(output, memory.view(5, 2, 64).mean(1))
    # a read attends: between the slots' smallest and largest numbers
    output, memory = cores["attention"].step(torch.randn(5, 3), state)
    low, high = memory.view(5, 2, 64).aminmax(dim=1)
    assert (output >= low - 1e-6).all()
    assert (output <= high + 1e-6).all()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(num_slots=0), "num_slots must be a whole number of at least 1, got 0"),
        (dict(head_size=2.5), r"head_size must be a whole number of at least 1, got 2\.5"),
        (dict(num_heads=True), "num_heads must be a whole number of at least 1, got True"),
        (dict(gate_style="units"), "unknown gate_style 'units'; did you mean 'unit'"),
        (dict(readout="max"), "unknown readout 'max'; valid: attention, flatten, mean"),
        (dict(forget_bias="1"), "forget_bias must be a finite number, got '1'"),
        (dict(forget_bias=float("nan")), "forget_bias must be a finite number, got nan"),
        (dict(input_bias=float("inf")), "input_bias must be a finite number, got inf"),
        (dict(num_entities=4), "num_entities must divide the 6 features the core reads per step, got 4"),
    ],
)
def test_rules(kwargs, message):
    with pytest.raises(UsageError, match=message):
        RMC(6, **kwargs)


def test_sonnet_names_are_taken_as_tensorflow_writes_them():
    case, arrays = load(CASES[0])
    weights = {f"agent/core/{name.removeprefix('w/')}:0": array for name, array in arrays.items() if name.startswith("w/")}
    core = rmc_from_sonnet(case["config"], weights)
    assert core.num_slots == case["config"]["mem_slots"]

    name = next(name for name in weights if name.endswith("/layer_norm/gamma:0"))
    without = {other: array for other, array in weights.items() if other != name}
    with pytest.raises(UsageError, match=r"must hold every parameter of the original, 'layer_norm/gamma' is missing"):
        rmc_from_sonnet(case["config"], without)
    with pytest.raises(UsageError, match=r"'blocks\.0\.qkv_norm\.weight' must have shape"):
        rmc_from_sonnet(case["config"], weights | {name: weights[name][:-1]})
    with pytest.raises(UsageError, match=r"only the parameters of the original, got \['extra/w'\]"):
        rmc_from_sonnet(case["config"], weights | {name.replace("layer_norm/gamma:0", "extra/w"): weights[name]})
    with pytest.raises(UsageError, match="one relational memory"):
        rmc_from_sonnet(case["config"], {})


def test_separate_weights_in_each_block_and_each_mlp_layer():
    # a well-known port shares them by accident: [layer] * n
    def count(**kwargs):
        return sum(parameter.numel() for parameter in RMC(3, **kwargs).parameters())

    block = 64 * 192 + 192 + 2 * 192 + 4 * 64
    assert count(num_blocks=2) - count() == block
    assert count(mlp_layers=3) - count() == 64 * 64 + 64
