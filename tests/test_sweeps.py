"""Sweeps: lines on the terminal, failing and stopped runs, going on, runs side by side."""

import importlib.util
import json
import os
import re
import signal
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf
from tiny_runs import SHORT, TINY

from rmc_rl import train
from rmc_rl.agents.ppo import RecurrentPPO
from rmc_rl.command_line import sweep
from rmc_rl.command_line.costs import duration
from rmc_rl.command_line.resuming import _identity
from rmc_rl.command_line.sweep import Job, Sweep
from rmc_rl.runs.folder import Run


@pytest.fixture(name="call")
def make_call(call):
    return partial(call, train)


def runs():
    return sorted(Path().glob("runs/rmc_rl-Copy-v0/*/*"))


def test_a_sweep_prints_a_line_for_each_run_and_the_command_that_compares_them(call):
    status, out, err = call("-m", "seed=1,2", "core=gru,memoryless", *SHORT)
    assert status == 0, err
    lines = out.splitlines()
    (folder,) = Path("runs/sweeps").iterdir()
    assert lines[0] == f"sweep: 4 jobs, one after the other; what each prints is in {folder}/<number>/output.txt"
    for number, line in enumerate(lines[1:5]):
        swept = f"seed={1 + number // 2} core={('gru', 'memoryless')[number % 2]}"
        assert re.match(rf"{number + 1}/4  {swept}: return \d\.\d+; [\d.]+ m?i?n? ?s", line), line
        assert ("to go)" in line) == (number < 3)
    assert re.match(r"sweep: 4 of 4 done in .+ \(.+ of the processor\)", lines[5])
    assert lines[6] == f"next: python -m rmc_rl.compare 'runs=runs/*/*/{folder.name}-*'"
    assert len(lines) == 7
    # the pattern names the runs of this sweep: their names begin with its time
    assert sorted(Path().glob(f"runs/*/*/{folder.name}-*")) == runs()
    assert len(runs()) == 4
    assert "num_symbols" not in out
    kept = (folder / "0" / "output.txt").read_text()
    assert "n_symbols: 4" in kept
    assert "next: python -m rmc_rl.evaluate run=" in kept
    assert err == ""


def test_a_run_that_fails_does_not_stop_the_others(call, monkeypatch):
    def fail(self, *args, **kwargs):
        if self.seed == 2:
            raise RuntimeError("a bug\nin two lines")
        return update(self, *args, **kwargs)

    update = RecurrentPPO.train
    monkeypatch.setattr(RecurrentPPO, "train", fail)
    status, out, err = call("-m", "seed=1,2,3", "core=memoryless", *SHORT)
    assert (status, err) == (1, "")
    assert "\n2/3  seed=2: FAILED: RuntimeError: a bug in two lines; " in out
    assert "\nsweep: 2 of 3 done in " in out
    assert re.search(r"\nfailed: 2/3 seed=2: RuntimeError: a bug in two lines \(runs/sweeps/.+/1/output.txt\)\n", out)
    assert re.search(r"\nto go on: python -m rmc_rl.train -m seed=1,2,3 .* resume=auto\n", out)
    (folder,) = Path("runs/sweeps").iterdir()
    assert "Traceback" in (folder / "1" / "output.txt").read_text()
    states = [job.state for job in Sweep(folder).jobs()]
    assert states == ["done", "failed", "done"]


def test_mistakes_that_appear_in_the_run_are_named(call):
    status, out, err = call("-m", "core.num_heads=2,4", "core.head_size=4", "init=null,missing", *SHORT)
    assert (status, err) == (1, "")
    assert out.count("FAILED: init must be the folder of a run or a saved model, got 'missing'") == 2


def test_a_stopped_sweep_goes_on_where_it_stopped(call, monkeypatch):
    def interrupted(self, *args, **kwargs):
        if self.seed == 2 and self.num_timesteps == 176 and not sent:
            sent.append(True)
            signal.raise_signal(signal.SIGINT)
        return update(self, *args, **kwargs)

    sent: list[bool] = []
    update = RecurrentPPO.train
    monkeypatch.setattr(RecurrentPPO, "train", interrupted)
    arguments = ["-m", "seed=1,2,3", "core=memoryless", *TINY, "total_timesteps=300"]
    status, out, _ = call(*arguments)
    assert status == 130
    assert "\n2/3  seed=2: stopped; " in out
    assert "\nsweep: 1 of 3 done in " in out
    assert "\nstopped by SIGINT, 2 not done\n" in out
    assert len(runs()) == 2
    first = {path: (path / "model.zip").stat().st_mtime_ns for path in runs()}

    status, out, err = call(*arguments, "resume=auto")
    assert status == 0, err
    assert "\n1/3  seed=1: finished before; " in out.replace("finished before, ", "finished before; ")
    assert re.search(r"\n2/3  seed=2: return .*", out)
    assert len(runs()) == 3
    assert {Run(path).read_config().seed for path in runs()} == {1, 2, 3}
    stopped, done = (next(path for path in first if Run(path).read_config().seed == seed) for seed in (2, 1))
    assert (done / "model.zip").stat().st_mtime_ns == first[done]
    assert RecurrentPPO.load(stopped / "model.zip").num_timesteps == 352
    # the runs of two sweeps: two patterns
    assert (
        re.search(r"next: python -m rmc_rl.compare 'runs=runs/\*/\*/\d{8}-\d{6}-\*,runs/\*/\*/\d{8}-\d{6}-\*'", out)
        or len({path.name[:15] for path in runs()}) == 1
    )
    # again: all are finished, and a fourth seed is the only new run
    status, out, err = call("-m", "seed=1,2,3,4", *arguments[2:], "resume=auto")
    assert status == 0, err
    assert out.count("finished before") == 3
    assert len(runs()) == 4


def test_resume_auto_without_a_name_means_the_run_of_the_same_command(call):
    assert call(*SHORT, "core=memoryless")[0] == 0
    assert call(*SHORT, "core=memoryless")[0] == 0
    status, out, err = call("core=memoryless", *SHORT, "resume=auto")  # in another order
    assert status == 0, err
    assert "has taken its 88 steps" in out
    assert str(runs()[1]) in out  # the newest
    status, out, _ = call(*SHORT, "core=memoryless", "algo.gamma=0.5", "resume=auto")
    assert (status, "has taken" in out) == (0, False)
    assert len(runs()) == 3
    assert _identity(None) is None
    assert _identity("python 'unclosed") is None


def test_other_signals_stop_all_jobs_by_a_file(tmp_path, monkeypatch):
    found = Sweep(tmp_path)
    assert found.stopped_by() is None
    signals = sweep._Signals(found)
    with signals:
        os.kill(os.getpid(), signal.SIGTERM)
        assert found.stopped_by() == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    monkeypatch.setattr(sweep, "current_sweep", lambda: found)
    assert sweep.should_stop()
    assert sweep.stopped_by() == 15


def test_jobs_that_were_killed_while_they_wrote_are_skipped(tmp_path):
    for number, text in enumerate(("", "[1]", '{"number": 2, "overrides": [], "state": "done"}', '{"number": 3, "new": 1}')):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "job.json").write_text(text)
    assert Sweep(tmp_path).jobs() == [Job(2, [], "done")]
    assert Sweep(tmp_path).state == {}


def test_which_keys_are_swept(tmp_path):
    lines = [
        "seed=range(3)",
        "core=rmc,lstm",
        "algo.net={a:[1,2],b:1}",
        "++env_kwargs.delay=[5,50]",
        "name='a,b'",
        "x=[1],[2]",
    ]
    OmegaConf.save(OmegaConf.create({"hydra": {"overrides": {"task": lines}}}), tmp_path / "multirun.yaml")
    assert sweep.swept_keys(Sweep(tmp_path)) == ["seed", "core", "x"]


def test_a_launcher_that_breaks_off_gets_one_line(call, monkeypatch):
    def killed(*_args, **_kwargs):
        raise RuntimeError("a worker was killed\nby the system")

    monkeypatch.setattr(Plugins, "instantiate_launcher", lambda *_args, **_kwargs: SimpleNamespace(launch=killed))
    status, out, err = call("-m", "seed=1,2", "core=memoryless", *SHORT)
    assert (status, err) == (1, "error: the sweep broke off: RuntimeError: a worker was killed\n")
    assert "\nsweep: 0 of 2 done in " in out


@pytest.mark.parametrize(("seconds", "text"), [(0.44, "0.4 s"), (59.4, "59 s"), (83, "1 min 23 s"), (5000, "1 h 23 min")])
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_a_launcher_that_is_not_installed_is_named(call, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None if "joblib" in name else object())
    status, _, err = call("-m", "seed=1,2", "hydra/launcher=joblib", *SHORT)
    message = "error: hydra/launcher=joblib needs a package that is missing: pip install 'rmc-rl[sweeps]'\n"
    assert (status, err) == (2, message)


@pytest.mark.skipif(importlib.util.find_spec("hydra_plugins") is None, reason="needs hydra-joblib-launcher")
def test_runs_side_by_side(call, tmp_path):
    (tmp_path / "failing.py").write_text(
        "from stable_baselines3.common.callbacks import BaseCallback\n"
        "class Fail(BaseCallback):\n"
        "    def _on_step(self):\n"
        "        if self.model.seed == 2:\n"
        "            raise RuntimeError('in another process')\n"
        "        return True\n"
    )
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    status, out, err = call("-m", "seed=1,2", "core=memoryless", *SHORT, "callbacks=[failing:Fail]", *launcher)
    assert status == 1, err
    (folder,) = Path("runs/sweeps").iterdir()
    first, second = Sweep(folder).jobs()
    assert (first.state, first.told["run"]) == ("done", str(runs()[0]))
    assert second.error == "RuntimeError: in another process"
    assert json.loads((folder / "sweep.json").read_text())["one_by_one"] is False
    assert "sweep: 2 jobs, side by side" in out
    assert "\nsweep: 1 of 2 done in " in out
    assert "failed: 2/2 seed=2: RuntimeError: in another process" in out
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
