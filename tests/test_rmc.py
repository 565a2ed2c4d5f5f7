"""The RMC against numbers from DeepMind's own code, and what its arguments mean."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from rmc_rl.agents.cores import RMC

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
@pytest.mark.parametrize("unrolled", ["forward", "step"])
def test_equals_sonnet(path, dtype, unrolled):
    case, arrays = load(path)
    output_error, gradient_error = TOLERANCES[dtype]
    weights = {name.removeprefix("w/"): array for name, array in arrays.items() if name.startswith("w/")}
    core = RMC.from_sonnet(case["config"], weights).to(dtype)

    x = torch.tensor(arrays["in/x"], dtype=dtype).flatten(2).requires_grad_()
    memory0 = torch.tensor(arrays["in/memory0"], dtype=dtype).flatten(1).requires_grad_()
    torch.testing.assert_close(
        core.initial_state(case["B"]), torch.tensor(arrays["aux/initial_state"], dtype=dtype).flatten(1), rtol=0, atol=0
    )
    if unrolled == "forward":
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
    gradients = {"in/x": x.grad.view(arrays["in/x"].shape), "in/memory0": memory0.grad.view(arrays["in/memory0"].shape)}
    prefix = next(name for name in weights if name.endswith("mlp/linear_0/w")).removesuffix("mlp/linear_0/w")
    parameters = dict(core.named_parameters())
    names = core.sonnet_names()
    assert set(names) == set(parameters)
    for name, source in names.items():
        gradient = parameters[name].grad
        gradients[f"w/{prefix}{source}"] = gradient.T if source.endswith("/w") else gradient
    checked = {f"grad/{name}" for name in gradients}
    assert checked == {name for name in arrays if name.startswith("grad/")}
    for name, gradient in gradients.items():
        expected = arrays[f"grad/{name}"]
        error = np.abs(gradient.detach().double().numpy() - expected).max()
        scale = np.abs(expected).max()
        assert error <= gradient_error * (scale if scale > 1e-12 else 1), (name, error, scale)
