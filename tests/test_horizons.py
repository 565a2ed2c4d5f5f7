"""The study of horizons: how tests of runs become a table and a picture, and that what is there is not run again."""

import json
import sys

import pytest
from PIL import Image

from rmc_rl.command_line.help import group_options


@pytest.fixture(scope="module")
def horizons(script):
    return script("horizons")


def result(horizons, *returns):
    return {"returns": dict(zip(map(str, horizons.DELAYS), returns, strict=True))}


def test_every_core_has_a_panel(horizons):
    assert set(horizons.CORES) == set(group_options("core"))
    assert len(horizons.CORES) == len(set(horizons.CORES))


def test_the_core_that_waits_longest_comes_first(horizons, tmp_path):
    found = {
        "gru/seed0": result(horizons, 1, 1, 1, 1, 1, 1, 0.5),
        "gru/seed1": result(horizons, 1, 1, 1, 1, 0.8, 0.5, 0.2),
        "rmc/seed0": result(horizons, 1, 1, 1, 1, 0.9, 0.9, 0.9),
        "memoryless/seed0": result(horizons, *[0.125] * 7),
    }
    assert horizons.table(found)[2:] == [
        "| `rmc` | 1 | 1.00 | 1.00 | 1.00 | 1.00 | 0.90 | 0.90 | 0.90 |",
        "| `gru` | 2 | 1.00 | 1.00 | 1.00 | 1.00 | 0.90 [0.80, 1.00] | 0.75 [0.50, 1.00] | 0.35 [0.20, 0.50] |",
        "| `memoryless` | 1 | 0.12 | 0.12 | 0.12 | 0.12 | 0.12 | 0.12 | 0.12 |",
    ]
    horizons.draw(found, tmp_path / "picture.png")
    picture = Image.open(tmp_path / "picture.png")
    assert picture.width > 2.5 * picture.height  # three panels with something in them
    assert len(picture.getcolors()) > 10


def test_a_quick_study_is_not_run_again(horizons, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(horizons, "DELAYS", (5, 50))
    monkeypatch.setattr(horizons, "EPISODES", 8)
    command = ["horizons.py", "--quick", "--cores", "memoryless", "--seeds", "1"]
    command += ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "results.json")]
    monkeypatch.setattr(sys, "argv", command)
    assert horizons.main() == 0
    (found,) = json.loads((tmp_path / "results.json").read_text()).values()
    assert found["returns"].keys() == {"5", "50"}
    assert found["steps"] == 2048
    assert "total_timesteps=2048" in found["keys"]
    assert "| `memoryless` | 1 |" in capsys.readouterr().out
    monkeypatch.setattr(horizons, "call", lambda *_: pytest.fail("it was run again"))
    assert horizons.main() == 0


def test_a_command_that_fails_is_told_and_the_others_go_on(horizons, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(horizons, "KEYS", [*horizons.KEYS, "algo.n_steps=-1"])
    monkeypatch.setattr(
        sys, "argv", ["horizons.py", "--cores", "gru", "--seeds", "1", "--out", str(tmp_path / "results.json")]
    )
    monkeypatch.chdir(tmp_path)
    assert horizons.main() == 1
    assert "n_steps must be a whole number" in capsys.readouterr().err
    assert not (tmp_path / "results.json").exists()
