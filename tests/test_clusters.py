"""Sweeps by submitit: jobs that it queues again, Slurm's commands, and what a user without it is told."""

import importlib.util
import json
import os
import re
import signal
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_runs import SHORT, TINY, curve

from rmc_rl import train
from rmc_rl.command_line import signals, sweep
from rmc_rl.command_line.overrides import missing_launcher
from rmc_rl.command_line.sweep import Job, Sweep

DOCS = Path(__file__).parent.parent / "docs"
needs_submitit = pytest.mark.skipif(importlib.util.find_spec("submitit") is None, reason="needs rmc-rl[slurm]")

# a job of seed 1 gets the signal once, as from Slurm before its time limit; that of seed 2 fails
CALLBACK = """
import os, signal
from pathlib import Path
from stable_baselines3.common.callbacks import BaseCallback

class Trouble(BaseCallback):
    def _on_step(self):
        if self.model.seed == 2:
            raise RuntimeError("in another process")
        if self.num_timesteps == 100 and not Path("sent").exists():
            Path("sent").touch()
            os.kill(os.getpid(), signal.SIGTERM)  # Slurm may send it first
            os.kill(os.getpid(), signal.SIGUSR2)
        return True
"""
SBATCH = """#!/usr/bin/env bash
cp "$1" submitted.sh
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\)%.*/\\1/p' "$1")
for task in $(seq 0 "$last"); do
  SLURM_JOB_ID=7 SLURM_ARRAY_JOB_ID=7 SLURM_ARRAY_TASK_ID=$task bash "$1" > /dev/null 2>&1 &
done
echo "Submitted batch job 7"
"""
SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do
  case $1 in --output | --error) shift 2 ;; *) shift ;; esac
done
exec "$@"
"""
SACCT = """#!/usr/bin/env bash
echo "JobID|State|NodeList"
echo "7_0|RUNNING|here"
"""


@pytest.fixture(name="call")
def make_call(call):
    return partial(call, train)


def runs():
    return sorted(Path().glob("runs/rmc_rl-Copy-v0/*/*"))


@needs_submitit
def test_a_job_that_submitit_queues_again_goes_on_at_its_checkpoint(call, tmp_path):
    (tmp_path / "trouble.py").write_text(CALLBACK)
    arguments = [
        "-m",
        "seed=1,2",
        "core=memoryless",
        *TINY,
        "total_timesteps=300",
        "callbacks=[trouble:Trouble]",
        "resume=auto",
    ]
    status, out, err = call(*arguments, "hydra/launcher=submitit_local")
    assert (status, err) == (1, "")
    assert "sweep: 2 jobs, side by side" in out
    assert re.search(r"\n1/2  seed=1: return .*; ", out)
    assert "\n2/2  seed=2: FAILED: RuntimeError: in another process; " in out
    assert "\nsweep: 1 of 2 done in " in out
    assert "\nfailed: 2/2 seed=2: RuntimeError: in another process (" in out
    (folder,) = Path("runs/sweeps").iterdir()
    assert [job.state for job in Sweep(folder).jobs()] == ["done", "failed"]
    # one run, which went on at the end of the update in which the signal came
    first, _ = runs()
    assert "(goes on at 176 steps)" in (folder / "0" / "output.txt").read_text()
    assert [row["time/total_timesteps"] for row in curve(first)] == ["88", "176", "264", "352"]
    logs = "".join(path.read_text() for path in folder.glob(".submitit/*/*_log.out"))
    for said in ("Caught signal SIGUSR2", "Requeued job"):
        assert len(re.findall(rf"^submitit .*{said}", logs, re.MULTILINE)) == 1, said


@needs_submitit
def test_slurm_gets_what_the_documented_launcher_says(call, tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    for name, text in {"sbatch": SBATCH, "srun": SRUN, "sacct": SACCT}.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    (text,) = re.findall(r"```yaml\n# (conf/\S+)\n(.*?)```", (DOCS / "clusters.md").read_text(), re.DOTALL)
    path = tmp_path / text[0]
    path.parent.mkdir(parents=True)
    path.write_text(text[1])
    launcher = ["--config-dir=conf", f"hydra/launcher={path.stem}", "hydra.launcher.setup=[]"]
    status, out, err = call("-m", "seed=1,2", "core=memoryless", *SHORT, "resume=auto", *launcher)
    assert (status, err) == (0, ""), out
    assert re.search(r"\n1/2  seed=1: return .*; ", out)
    assert "\nsweep: 2 of 2 done in " in out
    assert len(runs()) == 2
    script = (tmp_path / "submitted.sh").read_text()
    for line in ("--array=0-1%2", "--signal=USR2@120", "--time=240", "--cpus-per-task=4", "--mem=8GB"):
        assert f"#SBATCH {line}\n" in script, line


@needs_submitit
def test_without_slurm_one_line_says_so(call, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    status, _, err = call("-m", "seed=1,2", *SHORT, "hydra/launcher=submitit_slurm")
    assert status == 1
    assert re.fullmatch(r"error: the sweep broke off: RuntimeError: Could not detect \"srun\".*\n", err)


@pytest.mark.parametrize("launcher", ["submitit_local", "submitit_slurm"])
def test_a_missing_submitit_is_named_with_the_command_that_installs_it(call, monkeypatch, launcher):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None if "submitit" in name else object())
    status, _, err = call("-m", "seed=1,2", f"hydra/launcher={launcher}", *SHORT)
    message = f"error: hydra/launcher={launcher} needs a package that is missing: pip install 'rmc-rl[slurm]'\n"
    assert (status, err) == (2, message)


def test_a_missing_submitit_is_named_for_a_launcher_of_ones_own_too(call, monkeypatch, tmp_path):
    def no_plugin(*_):
        raise ModuleNotFoundError("No module named 'hydra_plugins'")

    monkeypatch.setattr("importlib.util.find_spec", no_plugin)
    (tmp_path / "conf" / "hydra" / "launcher").mkdir(parents=True)
    (tmp_path / "conf" / "hydra" / "launcher" / "mine.yaml").write_text("defaults: [submitit_slurm, missing]\n")
    status, _, err = call("-m", "seed=1,2", "--config-dir=conf", "hydra/launcher=mine", *SHORT)
    assert status == 2
    assert "hydra/launcher" in err
    assert err.count("\n") == 1
    text = "In 'hydra/launcher/mine': Could not find 'hydra/launcher/submitit_slurm'"  # what Hydra says without the plugin
    assert "pip install 'rmc-rl[slurm]'" in str(missing_launcher(text))


def test_an_unknown_launcher_gets_the_nearest_name(call):
    status, _, err = call("-m", "seed=1,2", "hydra/launcher=submitit_slrum", *SHORT)
    assert (status, err) == (2, "error: unknown hydra/launcher 'submitit_slrum'; did you mean 'submitit_slurm'?\n")


@pytest.fixture(name="handled")
def in_a_job_of_submitit(monkeypatch):
    """The signals that submitit's own handler got; that of SIGUSR2 stands for it."""
    handled = []
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    before = signal.signal(signal.SIGUSR2, lambda number, _: handled.append(number))
    yield handled
    signal.signal(signal.SIGUSR2, before)


def test_in_a_job_of_submitit_its_signal_stops_the_run_after_the_update(handled):
    assert signals.requeue_signal() == signal.SIGUSR2
    with signals.StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.name == "SIGTERM"
        os.kill(os.getpid(), signal.SIGUSR2)  # does not stop at once, but decides what follows
        assert stop.name == "SIGUSR2"
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.name == "SIGUSR2"
    assert handled == []
    os.kill(os.getpid(), signal.SIGUSR2)
    assert handled == [signal.SIGUSR2]


def test_the_preemption_signal_may_be_another(handled, monkeypatch):
    monkeypatch.setenv("SUBMITIT_PREEMPT_SIGNAL", "USR1")
    assert signals.requeue_signal() is None  # nobody handles it
    monkeypatch.setenv("SUBMITIT_PREEMPT_SIGNAL", "NONE")
    assert signals.requeue_signal() is None
    monkeypatch.delenv("SUBMITIT_PREEMPT_SIGNAL")
    monkeypatch.delenv("SUBMITIT_EXECUTOR")
    assert signals.requeue_signal() is None  # the handler is somebody else's
    with signals.StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGUSR2)
    assert (stop.received, handled) == (None, [signal.SIGUSR2])


@pytest.mark.parametrize(("overrides", "queued"), [(["seed=1", "resume=auto"], True), (["seed=1"], False)])
def test_only_with_resume_auto_is_a_stopped_job_queued_again(handled, monkeypatch, tmp_path, overrides, queued):
    hydra = SimpleNamespace(overrides=SimpleNamespace(task=overrides), job=SimpleNamespace(num=0))
    monkeypatch.setattr(sweep.HydraConfig, "get", lambda: hydra)
    monkeypatch.setattr(sweep.OmegaConf, "to_container", lambda lines, **_: lines)
    (tmp_path / "sweep.json").write_text(json.dumps({"started": 0.0, "num_jobs": 1, "one_by_one": False}))
    before = signal.getsignal(signal.SIGINT)
    sweep.run_job(Sweep(tmp_path), lambda: 128 + signal.SIGUSR2)
    signal.signal(signal.SIGINT, before)
    assert handled == [signal.SIGUSR2] * queued
    assert [(job.state, job.status) for job in Sweep(tmp_path).jobs()] == [("stopped", 128 + signal.SIGUSR2)]
    assert isinstance(Sweep(tmp_path).jobs()[0], Job)
