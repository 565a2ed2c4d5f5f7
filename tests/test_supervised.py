"""The supervised checks of the cores under scripts/: data, measures, and the runs that are kept."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch


def call(module: Any, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """Run a script in this process."""
    monkeypatch.setattr(sys, "argv", ["script", *arguments])
    return int(importlib.import_module("supervised").main(module.TASK, None))


def test_balls_are_drawn_as_asked(script: Any) -> None:
    balls = script("bouncing_balls")
    frames = balls.draw(3, 20, balls.TESTED["4"], 24, torch.Generator().manual_seed(0))
    assert frames.shape == (20, 3, 24 * 24)
    assert set(frames.unique().tolist()) == {0.0, 1.0}
    assert (frames[1:] != frames[:-1]).any(-1).all()  # they move
    many = balls.draw(64, 1, balls.TESTED["6-8"], 24, torch.Generator().manual_seed(0))
    few = balls.draw(64, 1, balls.TESTED["4"], 24, torch.Generator().manual_seed(0))
    assert many.mean() > 1.4 * few.mean()
    hidden = balls.draw(64, 1, balls.TESTED["curtain"], 24, torch.Generator().manual_seed(0)).view(64, 24, 24)
    assert not hidden[:, :, 9:15].any()
    assert hidden[:, :, :8].any()
    assert hidden[:, :, 16:].any()


def test_perfect_and_empty_predictions(script: Any) -> None:
    balls = script("bouncing_balls")
    true = balls.draw(4, 5, balls.TESTED["4"], 24, torch.Generator().manual_seed(0))
    ce, f1 = balls.measure(true, true)
    assert f1 == 1
    assert ce < 2e-4
    assert balls.measure(torch.zeros_like(true), true)[1] == 0


def test_a_prediction_alone_reads_no_later_frame(script: Any) -> None:
    balls = script("bouncing_balls")
    model = balls.Predictor(balls.ROWS["gru"], 24**2, 16, 20_000)
    frames = balls.draw(2, balls.SEEN + balls.ALONE, balls.TESTED["4"], 24, torch.Generator().manual_seed(0))
    found = model.alone(frames)
    assert found.shape == (balls.ALONE, 2, 24**2)
    changed = frames.clone()
    changed[balls.SEEN :] = 0.5
    torch.testing.assert_close(model.alone(changed), found)
    changed[balls.SEEN - 1] = 0.5
    assert not torch.equal(model.alone(changed), found)


def test_a_text_is_read_side_by_side(script: Any, tmp_path: Path) -> None:
    language = script("language_model")
    path = tmp_path / "text.txt"
    path.write_text("abcabcabcx")
    text, kinds = language.read(path)
    assert kinds == 4
    assert text.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 3]
    assert language.in_rows(text, 3).T.tolist() == [[0, 1, 2], [0, 1, 2], [0, 1, 2]]


def test_cross_entropy_does_not_depend_on_the_parts(script: Any) -> None:
    language = script("language_model")
    text = torch.randint(0, 5, (41, 2), generator=torch.Generator().manual_seed(0))
    model = language.Model(language.ROWS["rmc-4"], 5, 8, 4000)
    whole = model.cross_entropy(text, 40)
    assert model.cross_entropy(text, 7) == pytest.approx(whole, abs=1e-5)


def test_a_model_learns_what_a_memoryless_one_cannot(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    language = script("language_model")
    (tmp_path / "text.txt").write_text("aabbabab" * 800)  # after one character the next is a coin, after three it is certain
    out = tmp_path / "results.json"
    arguments = [
        *("--rows", "gru", "memoryless", "--seeds", "0", f"--text={tmp_path / 'text.txt'}", f"--out={out}"),
        *("--updates=150", "--steps=32", "--batch=4", "--params=5000", "--features=8", "--learning-rate=0.01"),
    ]
    assert call(language, arguments, monkeypatch) == 0
    found = {name: each["result"] for name, each in json.loads(out.read_text()).items()}
    assert found["gru/seed0"]["test"] < 1.2
    assert found["memoryless/seed0"]["test"] > 1.6
    assert "| gru | 1 |" in capsys.readouterr().out
    monkeypatch.setattr(language, "TASK", language.TASK._replace(run=None))  # what is there is not run again
    assert call(language, arguments, monkeypatch) == 0
    with pytest.raises(SystemExit) as stopped:
        call(language, [*arguments, "--clip", "1"], monkeypatch)
    assert stopped.value.code == 2
    assert "name another --out" in capsys.readouterr().err


def test_a_size_that_no_core_has_is_one_line(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    balls = script("bouncing_balls")
    with pytest.raises(SystemExit) as stopped:
        call(balls, ["--params", "3", "--out", str(tmp_path / "found.json")], monkeypatch)
    assert stopped.value.code == 2
    assert "params must be at least" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--updates=0"], "argument --updates: must be a whole number of at least 1, got '0'"),
        (["--text=missing.txt"], "--text must be a file that can be read"),
        (["--rows=gur"], "invalid choice: 'gur'"),
    ],
)
def test_wrong_arguments_are_one_line(
    script: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    line: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        call(script("language_model"), arguments, monkeypatch)
    assert stopped.value.code == 2
    assert line in capsys.readouterr().err.splitlines()[-1]
