"""A run's life on the command line: stopped, killed, resumed, named, started from other weights."""

import csv
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from rmc_rl import evaluate, load_policy, train
from rmc_rl.agents.ppo import RecurrentPPO
from rmc_rl.command_line import signals
from rmc_rl.runs import checkpoint
from rmc_rl.runs.checkpoint import find_checkpoints

COPY = ["env_kwargs.n_symbols=4", "env_kwargs.length=3", "env_kwargs.delay=5", "core.num_heads=2", "core.head_size=4"]
SMALL = ["device=cpu", "num_threads=1", "n_envs=4", "algo.n_steps=22", "algo.batch_size=44", "algo.n_epochs=1"]
TINY = [*COPY, *SMALL, "checkpoint_every=150", "name=first"]
RUN = Path("runs/rmc_rl-Copy-v0/rmc/first")


@pytest.fixture(name="call")
def make_call(monkeypatch, tmp_path, capsys):
    """Call a verb in an empty folder: exit status, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def call(verb, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{verb.__name__}.py", *map(str, arguments)])
        status = 0
        try:
            verb.main()
        except SystemExit as end:
            status = end.code
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return call


def curve(run: Path) -> list[dict[str, str]]:
    """The rows of a run's progress file, without times."""
    with (run / "progress.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{name: value for name, value in row.items() if name not in ("time/fps", "time/time_elapsed")} for row in rows]


def assert_equal_runs(first: Path, second: Path) -> None:
    assert curve(first) == curve(second)
    weights = [load_policy(run).state_dict() for run in (first, second)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that was never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    command = [sys.executable, "-m", "rmc_rl.train", *TINY, "total_timesteps=1000"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder / RUN


def test_a_run_that_is_stopped_by_a_signal_goes_on_to_the_same_end(call, whole, monkeypatch):
    def interrupted(self, *args, **kwargs):
        trained.append(self.num_timesteps)
        if len(trained) in (2, 5):
            signal.raise_signal(signal.SIGTERM)
        return update(self, *args, **kwargs)

    trained: list[int] = []
    update = RecurrentPPO.train
    monkeypatch.setattr(RecurrentPPO, "train", interrupted)
    status, out, err = call(train, *TINY, "total_timesteps=1000")
    assert (status, err.count("another signal stops at once")) == (143, 0)  # written to the file descriptor
    assert f"to go on: python -m rmc_rl.train resume={RUN}" in out
    assert [found.steps for found in find_checkpoints(RUN / "checkpoints")] == [176]
    assert call(train, *TINY, "total_timesteps=1000", "resume=auto")[0] == 143
    status, out, err = call(train, f"resume={RUN}")
    assert status == 0, err
    assert "goes on at 440 steps" in out
    assert_equal_runs(RUN, whole)
    assert not list(RUN.rglob("*.partial"))
    status, out, _ = call(train, f"resume={RUN}")
    assert (status, "has taken its 1,056 steps" in out) == (0, True)


@pytest.mark.parametrize(
    "arguments", [[], ["env=CartPole-v1", "core=lstm", "core.width=4", "normalize=true", "algo.gamma=0.9"]]
)
def test_a_run_that_is_killed_at_any_moment_goes_on_to_the_same_end(arguments, tmp_path):
    task = TINY if not arguments else [*SMALL, *arguments, "checkpoint_every=150", "name=first"]
    command = [sys.executable, "-m", "rmc_rl.train", *task, "total_timesteps=3000"]
    subprocess.run([*command, f"runs_dir={tmp_path / 'whole'}"], cwd=tmp_path, check=True, capture_output=True)
    (whole,) = (tmp_path / "whole").glob("*/*/first")
    generator = random.Random(1)
    for _ in range(6):
        process = subprocess.Popen([*command, "resume=auto"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            # wait for the first checkpoint of this process, and a little longer
            before = newest(tmp_path)
            while process.poll() is None and newest(tmp_path) == before:
                time.sleep(0.01)
            time.sleep(generator.uniform(0, 0.3))
            process.kill()
            printed = process.communicate(timeout=60)[0]
        finally:
            process.kill()
        assert process.returncode in (0, -9), printed
    subprocess.run([*command, "resume=auto"], cwd=tmp_path, check=True, capture_output=True)
    (run,) = (tmp_path / "runs").glob("*/*/first")
    assert_equal_runs(run, whole)


def newest(folder: Path) -> int:
    names = [path.name for path in folder.glob("runs/*/*/first/checkpoints/*")]
    return max((int(name) for name in names if name.isdigit()), default=0)


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_again(call, whole):
    assert call(train, *TINY, "total_timesteps=88")[0] == 0
    shutil.rmtree(RUN / "checkpoints")
    status, _, err = call(train, f"resume={RUN}", "total_timesteps=1000")
    assert status == 0, err
    assert_equal_runs(RUN, whole)


def test_a_run_goes_on_for_longer_and_says_what_that_does_to_the_schedule(call):
    assert call(train, *TINY, "total_timesteps=500")[0] == 0
    with pytest.warns(UserWarning, match="learning rate of a linear schedule jumps from 0 to"):
        status, out, _ = call(train, f"resume={RUN}", "total_timesteps=800")
    assert status == 0
    assert "total_timesteps: 800 instead of 500" in out
    assert [int(row["time/total_timesteps"]) for row in curve(RUN)] == list(range(88, 881, 88))
    assert find_checkpoints(RUN / "checkpoints")[0].steps == 880


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("seed=1", "seed must be 0"),
        ("core.num_slots=3", "core.num_slots must be 4"),
        ("core=lstm", "core.name must be 'rmc'"),
        ("algo.gamma=0.5", "algo.gamma must be 0.99"),
        ("env_kwargs.delay=7", "env_kwargs.delay must be 5"),
        ("env=CartPole-v1", "env must be 'rmc_rl/Copy-v0'"),
        ("init=x", "init must be None"),
    ],
)
def test_settings_that_may_not_change_are_named_in_one_line(call, argument, message):
    assert call(train, *TINY, "total_timesteps=88")[0] == 0
    status, _, err = call(train, f"resume={RUN}", argument)
    assert (status, err.count("\n")) == (2, 1)
    assert message in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resume=missing"], "run must be the folder"),
        (["name=a/b"], "name must be made of"),
        (["name=.."], "name must be made of"),
        (["init=missing"], "init must be"),
        (["keep_checkpoints=0"], "keep_checkpoints"),
    ],
)
def test_mistakes_get_one_line(call, arguments, message):
    status, _, err = call(train, *COPY, *SMALL, *arguments)
    assert (status, err.count("\n")) == (2, 1)
    assert message in err
    assert not Path("runs").exists()


def test_a_name_is_taken_once(call):
    assert call(train, *TINY, "total_timesteps=88")[0] == 0
    status, _, err = call(train, *TINY, "total_timesteps=88")
    assert (status, err.count("\n")) == (2, 1)
    assert "resume=auto" in err


def test_a_damaged_run_gets_one_line_from_resume(call):
    assert call(train, *TINY, "total_timesteps=88")[0] == 0
    for text in ("", "env: 3", "env: rmc_rl/Copy-v0\nenv_kwargs: {}\ncore: {name: rmc}", "[" * 1000):
        (RUN / "config.yaml").write_text(text)
        status, _, err = call(train, f"resume={RUN}")
        assert (status, err.count("\n")) == (2, 1), err


def test_init_starts_from_the_weights_of_another_run(call, whole):
    for init in (whole, whole / "model.zip"):
        status, _, err = call(
            train, *COPY, *SMALL, "env_kwargs.delay=9", "total_timesteps=1", f"init={init}", "algo.learning_rate=1e-30"
        )
        assert status == 0, err
        run = max(Path("runs/rmc_rl-Copy-v0/rmc").iterdir(), key=lambda path: path.stat().st_mtime_ns)
        first, second = load_policy(whole).state_dict(), load_policy(run).state_dict()
        assert all(torch.allclose(first[name], second[name]) for name in first)
        assert int(curve(run)[0]["time/total_timesteps"]) == 88
    status, _, err = call(train, *COPY, *SMALL, "core.num_slots=2", f"init={whole}")
    assert (status, err.count("\n")) == (2, 1)


def test_a_full_disk_gets_one_line_and_keeps_the_last_checkpoint(call, monkeypatch, whole):
    def full(path: Path, files: Any) -> None:
        if path.name != "176":
            raise OSError(28, "No space left on device")
        write(path, files)

    write = checkpoint._write_folder
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_write_folder", full)
        status, out, err = call(train, *TINY, "total_timesteps=1000")
    assert status == 1
    assert "Traceback" not in err
    assert "error: [Errno 28] No space left on device" in err
    assert f"resume={RUN}" in out
    assert call(train, f"resume={RUN}")[0] == 0
    assert_equal_runs(RUN, whole)


def test_a_folder_that_is_deleted_while_training_gets_one_line(call, monkeypatch):
    def delete(self, *args, **kwargs):
        shutil.rmtree(RUN, ignore_errors=True)
        return update(self, *args, **kwargs)

    update = RecurrentPPO.train
    monkeypatch.setattr(RecurrentPPO, "train", delete)
    status, _, err = call(train, *TINY, "total_timesteps=1000")
    assert (status, "Traceback" in err, RUN.exists()) == (1, False, False)


def test_a_worker_that_dies_gets_one_line(call, monkeypatch):
    def kill(self, *args, **kwargs):
        if self.num_timesteps > 300:
            os.kill(self.get_env().processes[1].pid, signal.SIGKILL)
        return update(self, *args, **kwargs)

    update = RecurrentPPO.train
    with monkeypatch.context() as patch:
        patch.setattr(RecurrentPPO, "train", kill)
        arguments = ["env=CartPole-v1", "core=lstm", *SMALL, "processes=true", "total_timesteps=1000", "checkpoint_every=150"]
        status, _, err = call(train, *arguments)
    assert (status, "Traceback" in err) == (1, False)
    assert "a process of the environment has died" in err
    (run,) = Path("runs/CartPole-v1/lstm").iterdir()
    status, _, err = call(train, f"resume={run}")
    assert status == 0, err
    assert len(curve(run)) == 12


@pytest.mark.slow  # it counts worker processes, so that it runs alone
def test_workers_survive_the_ctrl_c_that_a_terminal_sends_them_too(call, monkeypatch):
    def interrupt(self, *args, **kwargs):
        if not sent:
            sent.append(True)
            for process in self.get_env().processes:
                os.kill(process.pid, signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return update(self, *args, **kwargs)

    sent: list[bool] = []
    update = RecurrentPPO.train
    monkeypatch.setattr(RecurrentPPO, "train", interrupt)
    status, _, err = call(train, "env=CartPole-v1", "core=lstm", *SMALL, "processes=true", "total_timesteps=1000")
    assert (status, "Traceback" in err) == (130, False)
    (run,) = Path("runs/CartPole-v1/lstm").iterdir()
    assert find_checkpoints(run / "checkpoints")[0].steps == 88


def test_a_model_without_a_configuration_needs_trust(call, whole):
    shutil.copy(whole / "model.zip", "alone.zip")
    arguments = ["model=alone.zip", "env=rmc_rl/Copy-v0", "env_kwargs.n_symbols=4", "episodes=2"]
    status, _, err = call(evaluate, *arguments)
    assert (status, err.count("\n")) == (2, 1)
    assert "trust=true" in err
    assert call(evaluate, *arguments, "trust=true")[0] == 0


def test_a_first_signal_is_answered(capfd):
    with signals.StopSignals() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.should_stop()
    assert "another signal stops at once" in capfd.readouterr().err
