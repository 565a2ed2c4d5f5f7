"""The study of horizons: how tests of runs become a table and a picture, and that what is there is not run again."""

import json
import sys

import pytest
from PIL import Image

from rmc_rl.command_line.help import group_options
from rmc_rl.runs.folder import Run


@pytest.fixture(scope="module")
def horizons(script):
    return script("horizons")


@pytest.fixture
def task(horizons):
    return horizons.TASKS["symbol"]


def result(task, *returns, **more):
    return {"returns": dict(zip(map(str, task.tested), returns, strict=True))} | more


def test_every_core_has_a_panel(horizons):
    assert set(horizons.CORES) == set(group_options("core"))
    assert len(horizons.CORES) == len(set(horizons.CORES))


def test_the_core_that_waits_longest_comes_first(horizons, task, tmp_path):
    found = {
        "gru/seed0": result(task, 1, 1, 1, 1, 1, 1, 0.5),
        "gru/seed1": result(task, 1, 1, 1, 1, 0.8, 0.5, 0.2),
        "rmc/seed0": result(task, 1, 1, 1, 1, 0.9, 0.9, 0.9),
        "memoryless/seed0": result(task, *[0.125] * 7),
    }
    assert horizons.table(found, task)[2:] == [
        "| `rmc` | 1 | 1.00 | 1.00 | 1.00 | 1.00 | 0.90 | 0.90 | 0.90 |",
        "| `gru` | 2 | 1.00 | 1.00 | 1.00 | 1.00 | 0.90 [0.80, 1.00] | 0.75 [0.50, 1.00] | 0.35 [0.20, 0.50] |",
        "| `memoryless` | 1 | 0.12 | 0.12 | 0.12 | 0.12 | 0.12 | 0.12 | 0.12 |",
    ]
    horizons.draw(found, task, tmp_path / "picture.png")
    picture = Image.open(tmp_path / "picture.png")
    assert picture.width > 2.5 * picture.height  # three panels with something in them
    assert len(picture.getcolors()) > 10


def test_seconds_are_shown_where_all_results_have_them(horizons):
    task = horizons.TASKS["copy"]
    found = {
        f"rmc/seed{seed}": result(task, 1, 1, 1, 1, 0.5, seconds=seconds) for seed, seconds in enumerate((2000, 10, 1234))
    }
    assert horizons.table(found, task) == [
        "| core | seeds | seconds | 5 | 20 | 50 | 100 | 200 |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        "| `rmc` | 3 | 1,234 | 1.00 | 1.00 | 1.00 | 1.00 | 0.50 |",
    ]
    del found["rmc/seed0"]["seconds"]
    assert "seconds" not in horizons.table(found, task)[0]


def test_what_is_collected_from_a_run(horizons, tmp_path):
    (tmp_path / "evaluations").mkdir()
    for delay in (5, 9):
        test = dict(env_kwargs=dict(delay=delay), episodes=128, timesteps_trained=60)
        (tmp_path / f"evaluations/{delay}.json").write_text(json.dumps(test | {"return": dict(mean=delay / 10)}))
    (tmp_path / "progress.csv").write_text(f"time/iterations,{horizons.SECONDS}\n1,1\n2,4.6\n")
    config = "env: rmc_rl/Copy-v0\nenv_kwargs: {}\ncore: {name: gru}\nrun: {git_commit: abc}\n"
    (tmp_path / "config.yaml").write_text(config)
    found = horizons.collect(Run(tmp_path), horizons.Task("", 9, (5, 9), ()))
    assert found == {"returns": {"5": 0.5, "9": 0.9}, "steps": 60, "seconds": 5, "git_commit": "abc"}


@pytest.mark.parametrize("name", ["symbol", "copy", "digits"])
def test_a_quick_study_is_not_run_again(horizons, monkeypatch, tmp_path, capsys, name):
    monkeypatch.setitem(
        horizons.TASKS, name, horizons.TASKS[name]._replace(tested=horizons.TASKS[name].tested[:2], episodes=8)
    )
    command = ["horizons.py", "--task", name, "--quick", "--cores", "memoryless", "--seeds", "1"]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.chdir(tmp_path)
    assert horizons.main() == 0
    (found,) = json.loads((tmp_path / f"runs/horizons/{name}.json").read_text()).values()
    assert list(found["returns"]) == list(map(str, horizons.TASKS[name].tested))
    assert 2048 <= found["steps"] <= 8320  # whole rollouts
    assert "total_timesteps=2048" in found["keys"]
    tests = [json.loads(path.read_text())["env_kwargs"] for path in tmp_path.glob("runs/horizons/**/evaluations/*.json")]
    assert [test.get("split") for test in tests] == ["test" if name == "digits" else None] * 2
    assert "| `memoryless` | 1 |" in capsys.readouterr().out
    monkeypatch.setattr(horizons, "call", lambda *_: pytest.fail("it was run again"))
    assert horizons.main() == 0


def test_a_command_that_fails_is_told_and_the_others_go_on(horizons, task, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(horizons.TASKS, "symbol", task._replace(keys=f"{task.keys} algo.n_steps=-1"))
    monkeypatch.setattr(
        sys, "argv", ["horizons.py", "--cores", "gru", "--seeds", "1", "--out", str(tmp_path / "results.json")]
    )
    monkeypatch.chdir(tmp_path)
    assert horizons.main() == 1
    assert "n_steps must be a whole number" in capsys.readouterr().err
    assert not (tmp_path / "results.json").exists()


def test_results_with_other_keys_are_not_mixed(horizons, monkeypatch, tmp_path, capsys):
    out, given = tmp_path / "results.json", []

    def play(task, core, seed, _, more):
        given.append(more)
        return result(task, *[1] * 7, keys=horizons.keys_of(task, core, seed, more))

    monkeypatch.setattr(horizons, "play", play)
    command = ["horizons.py", "--cores", "gru", "--seeds", "1", "--out", str(out)]
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", [*command, "--keys", "algo.n_epochs=9"])
        assert horizons.main() == 0
    assert given == [["algo.n_epochs=9"]]  # once
    capsys.readouterr()
    for keys, other in (([], "2 algo.n_epochs=9"), (["--keys", "algo.n_epochs=8"], "8 algo.n_epochs=9")):
        monkeypatch.setattr(sys, "argv", [*command, *keys])
        with pytest.raises(SystemExit, match="2"):
            horizons.main()
        expected = f"holds gru/seed0 with other keys (algo.n_epochs={other}): give another --out and --runs"
        assert expected in capsys.readouterr().err
