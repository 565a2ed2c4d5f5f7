"""The ladder: how runs become a table, and that what is there is not run again."""

import json
import sys

import pytest

from rmc_rl.command_line.help import group_options
from rmc_rl.envs import WORLDS


@pytest.fixture(scope="module")
def ladder(script):
    return script("ladder")


def result(steps, best, length=1000.0):
    return {"reached_steps": steps, "reached_seconds": steps and steps / 10, "best_return": best, "steps": length}


def test_a_seed_that_never_reached_it_counts_as_infinitely_slow(ladder):
    assert ladder.median([300.0, None]) == float("inf")
    assert ladder.median([300.0, 500.0]) == 500
    assert ladder.median([None, 100.0, 200.0]) == 200
    jobs = [ladder.make_job("tmaze", core, seed, [], False) for core in ("lstm", "rmc", "memoryless") for seed in range(2)]
    found = dict(
        zip(
            [job.name for job in jobs],
            [result(100, 1.0), result(None, 0.5), result(400, 0.96), result(600, 0.97), result(None, 0.5), result(None, 0.4)],
            strict=True,
        )
    )
    rows = ladder.table(found, jobs)[2:]
    assert rows[0] == "| tmaze | rmc | 2 of 2 | 600 | 60 | 0.965 | 0.45 |"  # not slower than one that failed in a seed
    assert rows[1] == "| tmaze | lstm | 1 of 2 | > 1,000 | never | 0.75 | 0.45 |"
    assert rows[2] == "| tmaze | memoryless | 0 of 2 | > 1,000 | never | 0.45 | 0.45 |"


def test_later_keys_win(ladder):
    job = ladder.make_job("copy", "rmc", 3, ["env_kwargs.delay=50", "params=60000"], quick=True)
    assert job.keys[:3] == ("core=rmc", "seed=3", "env=rmc_rl/Copy-v0")
    assert {"env_kwargs.delay=50", "params=60000", "total_timesteps=512"} <= set(job.keys)
    assert "env_kwargs.delay=20" not in job.keys


def test_rungs_name_environments_that_exist(ladder):
    for rung in ladder.RUNGS.values():
        env = rung.keys.split()[0].removeprefix("env=")
        assert env in WORLDS or env.startswith("MiniGrid-")
    assert ladder.CONTROL in group_options("core")


def test_a_quick_run_is_not_run_again(ladder, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(ladder, "LOOK_EVERY", 0.2)
    command = ["ladder.py", "--quick", "--rungs", "copy-small", "--cores", "memoryless", "--seeds", "1"]
    command += ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "results.json")]
    monkeypatch.setattr(sys, "argv", command)
    assert ladder.main() == 0
    (found,) = json.loads((tmp_path / "results.json").read_text()).values()
    assert (found["steps"], found["reached_steps"], found["threshold"]) == (512, None, 0.95)
    table = capsys.readouterr().out
    assert "| copy-small | memoryless | 0 of 1 | > 512 | never | 0." in table
    monkeypatch.setattr(ladder, "play", None)
    assert ladder.main() == 0
    assert capsys.readouterr().out == table
    monkeypatch.setattr(sys, "argv", [*command, "--keys", "gamma=0.5"])
    with pytest.raises(SystemExit):
        ladder.main()
    assert "with other keys" in capsys.readouterr().err


def test_a_run_that_fails_is_reported(ladder, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(ladder, "LOOK_EVERY", 0.2)
    command = ["ladder.py", "--quick", "--rungs", "copy-small", "--cores", "memoryless", "--seeds", "1", "--keys", "n_envz=3"]
    monkeypatch.setattr(sys, "argv", [*command, "--runs", str(tmp_path), "--out", str(tmp_path / "results.json")])
    assert ladder.main() == 1
    assert "failed with status 2: error: unknown key 'n_envz'; did you mean 'n_envs'?" in capsys.readouterr().err


def test_a_run_that_had_reached_the_threshold_counts_as_it_is(ladder, monkeypatch, tmp_path):
    monkeypatch.setitem(ladder.RUNGS, "copy-small", ladder.RUNGS["copy-small"]._replace(threshold=0.01))
    job = ladder.make_job("copy-small", "memoryless", 0, [], quick=True)
    first = ladder.play(job, tmp_path, to_the_end=False)
    again = ladder.play(job, tmp_path, to_the_end=False)  # as after the ladder was killed before it kept the result
    assert first["reached_steps"] is not None
    assert (again["reached_steps"], again["steps"]) == (first["reached_steps"], first["steps"])
