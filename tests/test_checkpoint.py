"""Checkpoints: a run that was stopped and resumed is the run that was never stopped."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import resumable
import torch

HERE = Path(__file__).parent


def same(first: Any, second: Any) -> bool:
    """Whether two nestings of values are equal, bit for bit."""
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second or (first != first and second != second))


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All cases, stopped in this process and resumed in a new one."""
    folder = tmp_path_factory.mktemp("runs")
    for case in resumable.CASES:
        resumable.stop(case, folder / case / "checkpoints")
    subprocess.run([sys.executable, str(HERE / "resumable.py"), str(folder), *resumable.CASES], check=True)
    return folder


@pytest.mark.parametrize("case", resumable.CASES)
def test_a_resumed_run_equals_one_that_was_never_stopped(case: str, resumed: Path) -> None:
    model = resumable.CASES[case]()
    expected = resumable.train(model, resumable.ROLLOUTS * resumable.N_STEPS * model.n_envs)
    found = torch.load(resumed / case / "resumed.pt", weights_only=False)
    rows = expected["rows"][resumable.STOPPED_AFTER :]
    if case == "stock":  # counts iterations from the start of each call of learn
        for row in (*rows, *found["rows"]):
            row.pop("time/iterations")
    assert same(found["rows"], rows), [
        (name, old, new[name]) for old_row, new in zip(rows, found["rows"]) for name, old in old_row.items() if not same(old, new.get(name))
    ]
    assert same(found["weights"], expected["weights"])
    assert same(found["optimizer"], expected["optimizer"])
    assert len(rows) == resumable.ROLLOUTS - resumable.STOPPED_AFTER
    assert np.isfinite(rows[-1]["train/loss"])
