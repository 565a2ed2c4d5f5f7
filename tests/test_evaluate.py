"""Evaluating several runs, in several settings: which runs, one table, a row for each episode."""

import csv
import json
import re
import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from tiny_runs import SHORT

from rmc_rl import evaluate, train
from rmc_rl.command_line.agent import reference_returns
from rmc_rl.envs import make_vec
from rmc_rl.errors import UsageError
from rmc_rl.runs.folder import Run, find_runs
from rmc_rl.studies.tables import text_table


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with two runs of different cores, and what Hydra leaves of a sweep."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for core, seed in (("memoryless", 1), ("gru", 2)):
            patch.setattr(sys, "argv", ["train", *SHORT, f"core={core}", f"seed={seed}"])
            train.main()
    (folder / "runs" / "sweeps" / "20260101-000000" / "0").mkdir(parents=True)
    return folder


@pytest.fixture(name="call")
def make_call(call, trained, tmp_path):
    """Evaluate beside a copy of the runs."""
    shutil.copytree(trained / "runs", tmp_path / "runs")
    return partial(call, evaluate, "device=cpu")


def runs():
    return sorted(map(str, Path().glob("runs/rmc_rl-Copy-v0/*/*")))


def results():
    return [json.loads(path.read_text()) for path in sorted(Path().glob("runs/*/*/*/evaluations/*.json"))]


def test_several_runs_end_in_one_table(call):
    status, out, err = call("run=runs/*/*/*", "episodes=20")
    assert status == 0, err
    assert "skipped 1 that are no runs: runs/sweeps/20260101-000000/0\n" in out
    gru, memoryless = runs()
    table = out[out.index("mean return") :].splitlines()
    assert table[1].split() == ["run", "core", "seed", "return"]
    assert table[3].split()[:3] == [gru, "gru", "2"]
    assert table[4].split()[:3] == [memoryless, "memoryless", "1"]
    assert [line.split()[-1] for line in table[5:8]] == ["0.250", "0.250", "1.000"]
    assert [line.split()[0] for line in table[5:8]] == ["random", "without", "perfect"]
    means = [f"{result['return']['mean']:.3f}" for result in results()]
    assert [line.split()[3] for line in table[3:5]] == means


@pytest.mark.parametrize("separator", ["list", "repeated"])
def test_runs_with_commas_between_them_are_played_once_each(call, separator):
    gru, memoryless = runs()
    text = f"{gru},{memoryless}" if separator == "list" else f"{gru},{memoryless},{gru}/"
    status, _, err = call(f"run={text}", "episodes=3")
    assert status == 0, err
    assert [result["run"] for result in results()] == [gru, memoryless]


def test_a_sweep_over_a_keyword_has_a_column_for_each_value(call):
    gru, memoryless = runs()
    status, out, err = call("-m", f"run={gru},{memoryless}", "env_kwargs.delay=2,5", "episodes=6")
    assert status == 0, err
    table = out[out.index("mean return") :].splitlines()
    assert table[1].split("  ")[0] == "run"
    assert re.split(r"\s{2,}", table[1]) == ["run", "core", "seed", "trained at", "delay=2", "delay=5"]
    assert re.split(r"\s{2,}", table[3])[:4] == [gru, "gru", "2", "delay=5"]
    assert len(re.split(r"\s{2,}", table[4])) == 6
    found = results()
    assert sorted((result["run"], result["env_kwargs"]["delay"]) for result in found) == [
        (run, delay) for run in (gru, memoryless) for delay in (2, 5)
    ]
    assert {np.mean(result["length"]["each"]) for result in found} == {8, 11}
    # one line for each job, and what the job printed is kept
    assert len(re.findall(r"^\d/4  ", out, re.MULTILINE)) == 4
    assert len(out.splitlines()) == 15
    assert out.splitlines()[-1] == f"next: python -m rmc_rl.compare runs={gru},{memoryless}"
    kept = sorted(Path().glob("runs/sweeps/*/*/output.txt"))
    assert len(kept) == 4
    assert "95 % interval" in kept[0].read_text()


def test_both_ways_to_act(call):
    gru, _ = runs()
    status, out, err = call(f"run={gru}", "episodes=30", "deterministic=both")
    assert status == 0, err
    assert [result["deterministic"] for result in results()] == [True, False]
    assert results()[0]["return"]["each"] != results()[1]["return"]["each"]
    assert re.split(r"\s{2,}", out[out.index("mean return") :].splitlines()[1])[-2:] == ["likeliest", "sampled"]
    # sampled actions follow from the seed as well
    assert call(f"run={gru}", "episodes=30", "deterministic=false")[0] == 0
    assert results()[2]["return"]["each"] == results()[1]["return"]["each"]


def test_a_row_for_each_episode_beside_the_result(call):
    gru, _ = runs()
    status, out, err = call(f"run={gru}", "episodes=7", "n_envs=3")
    assert status == 0, err
    (path,) = Path(gru, "evaluations").glob("*.csv")
    with path.open() as file:
        rows = list(csv.DictReader(file))
    (result,) = results()
    assert path.with_suffix(".json").is_file()
    assert [float(row["return"]) for row in rows] == result["return"]["each"]
    assert [int(row["length"]) for row in rows] == [11] * 7
    assert sorted(row["copy"] for row in rows) == ["0", "0", "1", "1", "2", "2", "2"]  # the share of each copy
    assert result["reference"] == dict(random=0.25, memoryless=0.25, perfect=1.0)
    assert result["cpu_seconds"] > 0
    assert "for comparison: random play 0.25, without memory 0.25, perfect play 1\n" in out
    assert re.search(r"\nprocessor: [\d.]+ seconds of .+ \(\d+ cores, \d+ threads?\)\n", out)


def test_a_damaged_run_does_not_stop_the_others(call):
    gru, memoryless = runs()
    Path(gru, "model.zip").write_text("no zip")
    status, out, err = call("run=runs/*/*/*", "episodes=3")
    assert (status, err.count("error: ")) == (2, 1)
    assert f"error: {gru}: model must be a file that save has written" in err
    assert [result["run"] for result in results()] == [memoryless]
    status, out, err = call("-m", f"run={gru},{memoryless}", "episodes=3")
    assert status == 1
    assert f"failed: 1/2 run={gru}: model must be a file that save has written" in out
    assert memoryless in out[out.index("mean return") :]
    # a job that evaluates both
    status, out, err = call("-m", "run=runs/*/*/*", "env_kwargs.delay=5", "episodes=3")
    assert (status, err) == (1, "")
    assert memoryless in out[out.index("mean return") :]
    assert "\nskipped " in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run=runs/x/*"], "got 'runs/x/*', which matches nothing"),
        (["run=runs/*"], "got 'runs/*', which matches 2 paths, none of which is the folder of a run"),
        (["run=nowhere,runs/*/*/*"], "got 'nowhere'"),
        (["run=runs/*/*/*", "deterministic=perhaps"], "deterministic must be true, false or both, got 'perhaps'"),
        (["env_kwargs.delay=5,10"], "env_kwargs.delay must have one value; a sweep over several needs -m"),
    ],
)
def test_mistakes_get_one_line(call, arguments, message):
    status, _, err = call(*arguments)
    assert (status, err.count("\n")) == (2, 1)
    assert message in err


def test_a_folder_whose_name_has_a_comma_is_one_run(tmp_path):
    (tmp_path / "a,b*").mkdir()
    assert find_runs(str(tmp_path / "a,b*")).runs == [str(tmp_path / "a,b*")]
    with pytest.raises(UsageError, match="run must be the folder of a run, a pattern"):
        find_runs(str(tmp_path / "a,c"))


def test_a_pattern_names_a_run_if_it_matches_one_alone(tmp_path):
    for name in ("gru-seed0", "gru-seed1", "rmc-seed0"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").touch()
    (tmp_path / "rmc-notes").mkdir()
    assert Run.open(tmp_path / "rmc-*").path == tmp_path / "rmc-seed0"
    with pytest.raises(UsageError, match=r"a pattern that matches one, got '.*', which matches 2: .*gru-seed0, .*gru-seed1$"):
        Run.open(tmp_path / "gru-*")
    with pytest.raises(UsageError, match=r"which matches 0$"):
        Run.open(tmp_path / "lstm-*")
    with pytest.raises(UsageError, match="run must be the folder of a run, got"):
        Run.open(tmp_path / "lstm")


def test_reference_returns_of_worlds_and_of_others():
    assert reference_returns(make_vec("rmc_rl/TMaze-v0", 2)).perfect == 1
    for env_id in ("CartPole-v1", "ALE/Pong-v5"):
        assert set(reference_returns(make_vec(env_id, 1))) == {None}


def test_tables_leave_empty_columns_out():
    assert text_table(["a", "b", "c"], [["1", "", "x"], ["22", "", ""]]) == "a   c\n--  -\n1   x\n22"
