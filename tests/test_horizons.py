"""The study of horizons: how tests of runs become a table and a picture, and that what is there is not run again."""

import json
import sys

import pytest
from PIL import Image

from rmc_rl.command_line.help import group_options
from rmc_rl.runs.folder import Run

CONFIG = "env: rmc_rl/Copy-v0\nenv_kwargs: {}\ncore: {name: gru}\nrun: {git_commit: abc}\n"


@pytest.fixture(scope="module")
def horizons(script):
    return script("horizons")


@pytest.fixture
def task(horizons):
    return horizons.TASKS["symbol"]


def result(task, *returns, **more):
    return {"returns": dict(zip(map(str, task.delays), returns, strict=True))} | more


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


def test_a_seed_that_did_not_learn_is_slower_than_all_others(horizons):
    task = horizons.TASKS["copy"]
    found = {
        f"{core}/seed{seed}": result(task, 1, 1, 1, 1, 0.5, solved_steps=steps, solved_seconds=steps and steps // 1000)
        for core, all_steps in [("rmc", [2000, 1000, None]), ("gru", [3000, None])]
        for seed, steps in enumerate(all_steps)
    }
    assert horizons.table(found, task) == [
        "| core | seeds | steps | seconds | 5 | 20 | 50 | 100 | 200 |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        "| `rmc` | 3 | 2,000 | 2 | 1.00 | 1.00 | 1.00 | 1.00 | 0.50 |",
        "| `gru` | 2 | never | never | 1.00 | 1.00 | 1.00 | 1.00 | 0.50 |",
    ]


def test_a_task_counts_as_solved_at_the_end_of_its_curriculum(horizons, tmp_path):
    run = Run(tmp_path)
    (tmp_path / "evaluations").mkdir()
    for delay in (5, 9):
        test = dict(env_kwargs=dict(delay=delay), episodes=horizons.EPISODES, timesteps_trained=60)
        (tmp_path / f"evaluations/{delay}.json").write_text(json.dumps(test | {"return": dict(mean=delay / 10)}))
    rows = ["", "1,0.99,10,1", "5,0.9,20,2.6", "9,0.94,30,3", "9,0.96,40,4.6", "9,0.97,50,5"]
    columns = f"curriculum/delay,{horizons.RETURN},{horizons.STEPS},{horizons.SECONDS}"
    (tmp_path / "progress.csv").write_text("\n".join([columns, *rows]) + "\n")
    (tmp_path / "config.yaml").write_text(f"{CONFIG}curriculum: {{delay: [1, 9, 4]}}\n")
    task = horizons.Task("", 9, (5, 9), ())
    assert horizons.collect(run, task) == {
        "returns": {"5": 0.5, "9": 0.9},
        "steps": 60,
        "solved_steps": 40,
        "solved_seconds": 5,
        "git_commit": "abc",
    }
    (tmp_path / "config.yaml").write_text(f"{CONFIG}curriculum: {{delay: [1, 10, 9]}}\n")
    assert horizons.collect(run, task)["solved_steps"] is None


@pytest.mark.parametrize("name", ["symbol", "copy"])
def test_a_quick_study_is_not_run_again(horizons, monkeypatch, tmp_path, capsys, name):
    monkeypatch.setitem(horizons.TASKS, name, horizons.TASKS[name]._replace(delays=(5, 50)))
    monkeypatch.setattr(horizons, "EPISODES", 8)
    command = ["horizons.py", "--task", name, "--quick", "--cores", "memoryless", "--seeds", "1"]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.chdir(tmp_path)
    assert horizons.main() == 0
    (found,) = json.loads((tmp_path / f"runs/horizons/{name}.json").read_text()).values()
    assert found["returns"].keys() == {"5", "50"}
    assert 2048 <= found["steps"] <= 2240  # whole rollouts
    assert "total_timesteps=2048" in found["keys"]
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
