"""scripts/benchmark_growth.py: sizes, the table and the picture of stored results, and one point that is measured."""

import json
import sys

import pytest


@pytest.fixture
def growth(script):
    return script("benchmark_growth")


@pytest.mark.parametrize(("axis", "size"), [("copies", 4), ("length", 8), ("width", 128), ("parts", 2)])
@pytest.mark.parametrize("core", ["rmc", "gru", "rims"])
def test_one_size_changes_and_the_others_stay(growth, core, axis, size):
    if growth.core_arguments(core, axis, size) is None:
        assert (core, axis) == ("gru", "parts")
        return
    model = growth.make_agent(core, axis, size)
    assert (model.n_envs, model.n_steps) == (size if axis == "copies" else 64, size if axis == "length" else 32)
    units = {
        "rmc": (size if axis == "parts" else 4) * (size if axis == "width" else 64),
        "gru": size if axis == "width" else 64,
        "rims": (size if axis == "parts" else 6) * (size // 4 if axis == "width" else 16) * 2,  # of an LSTM each
    }
    assert model.policy.core.state_size == units[core]


def test_more_products_are_counted_where_there_are_more(growth):
    assert growth.operations("gru", "width", 64) > 2 * growth.operations("gru", "width", 32) > 0


def test_what_is_stored_is_shown(growth, monkeypatch, tmp_path, capsys):
    point = {"steps per second": 12345.6, "acting": 23456.7, "share of the bound": 0.25, "megabytes": 101.4}
    (tmp_path / "growth.json").write_text(json.dumps({"copies/gru/64": point, "copies/gru/256": point}))
    arguments = [
        "--axes",
        "copies",
        "--table",
        "--out",
        str(tmp_path / "growth.json"),
        "--picture",
        str(tmp_path / "growth.png"),
    ]
    monkeypatch.setattr(sys, "argv", ["benchmark_growth.py", *arguments])
    assert growth.main() == 0
    assert "| 64 | 12,346 (23,457), 25%, 101 |" in capsys.readouterr().out
    assert (tmp_path / "growth.png").stat().st_size > 1000
    monkeypatch.setattr(sys, "argv", ["benchmark_growth.py", "--axes", "size"])
    with pytest.raises(SystemExit) as stopped:
        growth.main()
    assert stopped.value.code == 2
