"""A run's life on the command line: stopped, killed, resumed, named, started from other weights."""

import errno
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch
from omegaconf import OmegaConf
from tiny_runs import curve

from rmc_rl import evaluate, load_policy, train
from rmc_rl.agents.ppo import RecurrentPPO
from rmc_rl.command_line import resuming, signals
from rmc_rl.errors import UsageError
from rmc_rl.runs import checkpoint, folder
from rmc_rl.runs.checkpoint import find_checkpoints
from rmc_rl.runs.curves import make_logger, told_once
from rmc_rl.runs.folder import Run

COPY = ["env_kwargs.n_symbols=4", "env_kwargs.length=3", "env_kwargs.delay=5", "core.num_heads=2", "core.head_size=4"]
SMALL = ["device=cpu", "num_threads=1", "n_envs=4", "algo.n_steps=22", "algo.batch_size=44", "algo.n_epochs=1"]
TINY = [*COPY, *SMALL, "checkpoint_every=150", "name=first"]
RUN = Path("runs/rmc_rl-Copy-v0/rmc/first")


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


def test_a_run_that_was_killed_after_its_last_checkpoint_gets_its_model(call, whole):
    shutil.copytree(whole, RUN)
    (RUN / "model.zip").write_bytes((RUN / "best" / "model.zip").read_bytes())  # of fewer steps
    (RUN / "checkpoints" / ".partial-880").mkdir()
    status, out, _ = call(train, f"resume={RUN}")
    assert (status, "has taken its 1,056 steps" in out) == (0, True)
    assert_equal_runs(RUN, whole)
    assert not (RUN / "checkpoints" / ".partial-880").exists()


def test_a_full_disk_is_an_error_of_the_disk_at_whichever_write_it_strikes(tmp_path, monkeypatch):
    class Disk(io.BytesIO):
        """Full for one write, the ``full``-th from 0."""

        def __init__(self, full):
            super().__init__()
            self.full, self.writes = full, 0

        def write(self, data):
            self.writes += 1
            if self.writes == self.full + 1:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    model = RecurrentPPO("MlpLstmPolicy", "CartPole-v1", n_steps=8, batch_size=8)
    for disk in map(Disk, range(12)):
        monkeypatch.setattr(folder, "written_whole", lambda _path, disk=disk: nullcontext(disk))
        with pytest.raises(OSError, match="No space left") if disk.full == 0 else suppress(OSError):
            folder.save_model(model, tmp_path / "model.zip")


def test_a_run_that_is_stopped_in_any_way_goes_on_to_the_same_end(checkout, tmp_path):
    command = [sys.executable, str(checkout / "scripts" / "torture.py"), "--quick", "--json", "table.json"]
    environment = os.environ | dict(OMP_WAIT_POLICY="passive")
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = json.loads((tmp_path / "table.json").read_text())
    assert sum(count["stops"] for count in counts) >= 11  # 12 where a file system may be mounted
    assert {count["kind"] for count in counts} >= {"kill -9", "signals", "full disk (limit on files)", "dead worker"}
    assert "| 0 |\n" in done.stdout


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_again(call, whole):
    assert call(train, *TINY, "total_timesteps=88")[0] == 0
    shutil.rmtree(RUN / "checkpoints")
    status, _, err = call(train, f"resume={RUN}", "total_timesteps=1000")
    assert status == 0, err
    assert_equal_runs(RUN, whole)


def test_a_run_of_an_older_version_goes_on_without_the_keys_that_are_new(call):
    assert call(train, *TINY, "total_timesteps=88", "algo.learning_rate_schedule=constant")[0] == 0
    config = OmegaConf.load(RUN / "config.yaml")
    for key, value in resuming._with_defaults(OmegaConf.create()).items():
        if OmegaConf.is_dict(value) and key != "evaluation" and len(value):
            for name in value:
                config[key].pop(name)
        else:
            config.pop(key)
    (RUN / "config.yaml").write_text(OmegaConf.to_yaml(config))
    status, _, err = call(train, f"resume={RUN}", "total_timesteps=176")
    assert status == 0, err
    assert [row["time/total_timesteps"] for row in curve(RUN)] == ["88", "176"]
    # a key that every version has is still missed
    config.policy.pop("critic")
    (RUN / "config.yaml").write_text(OmegaConf.to_yaml(config))
    status, _, err = call(train, f"resume={RUN}", "total_timesteps=264")
    assert status == 2
    assert "policy.critic" in err


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
        ("algo.gamma=0.5", "algo.gamma must be 0.0"),
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
    assert "a process of the environment has died: copy 1, exit code -9" in err
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


def test_a_run_is_trained_by_one_process_at_a_time(call, monkeypatch):
    def again(self, *args, **kwargs):
        monkeypatch.setattr(RecurrentPPO, "train", update)
        for arguments in ([f"resume={RUN}"], [*TINY, "resume=auto"], TINY):
            answers.append(call(train, *arguments))
        return update(self, *args, **kwargs)

    answers: list[tuple[int, str, str]] = []
    update = RecurrentPPO.train
    monkeypatch.setattr(RecurrentPPO, "train", again)
    assert call(train, *TINY, "total_timesteps=176")[0] == 0
    for status, _, err in answers:
        assert (status, err.count("error: "), f"process {os.getpid()}" in err) == (2, 1, True)
    assert len(answers) == 3
    assert curve(RUN)[-1]["time/total_timesteps"] == "176"
    assert call(train, f"resume={RUN}")[0] == 0  # the lock was released


def test_a_process_that_is_killed_releases_its_lock(tmp_path):
    run = Run.create(tmp_path, "env", "core", 0, "first")
    code = (
        "import sys, time; from pathlib import Path; from rmc_rl.runs.folder import Run\n"
        "with Run(Path(sys.argv[1])).locked(): print('locked', flush=True); time.sleep(100)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(run.path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(UsageError, match=f"process {process.pid} on"), run.locked():
            pass
    finally:
        process.kill()
        process.wait()
    with run.locked():
        pass


def test_a_folder_that_cannot_be_locked_gets_one_line(call):
    assert call(train, *TINY, "total_timesteps=88")[0] == 0
    (RUN / "lock").unlink()
    (RUN / "lock").mkdir()
    status, _, err = call(train, f"resume={RUN}", "total_timesteps=176")
    assert (status, err.count("\n"), "must be one that can be written to" in err) == (2, 1, True)


class Unclosable(gymnasium.Env):
    """An environment that cannot be closed."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Discrete(2)
    seconds = 0.0

    def reset(self, **kwargs):
        super().reset(**kwargs)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 1.0, False, False, {}

    def close(self):
        time.sleep(self.seconds)
        raise RuntimeError("broken")


@pytest.mark.parametrize(("seconds", "message"), [(0, "could not be closed: RuntimeError: broken"), (60, "did not close")])
def test_an_environment_that_cannot_be_closed_does_not_make_a_run_fail(call, monkeypatch, seconds, message):
    monkeypatch.setattr(Unclosable, "seconds", seconds)
    monkeypatch.setattr(train, "CLOSING_SECONDS", 0.2)
    gymnasium.register("Unclosable-v0", Unclosable)
    try:
        with pytest.warns(UserWarning, match=message):
            status, out, _ = call(train, "env=Unclosable-v0", "core=memoryless", *SMALL, "total_timesteps=88")
    finally:
        del gymnasium.registry["Unclosable-v0"]
    assert (status, "next: " in out) == (0, True)
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL


def test_the_page_about_resuming_runs_as_written(call, checkout):
    page = (checkout / "docs" / "resume.md").read_text()
    commands = re.findall(r"^scripts/train (.*)", "\n".join(re.findall(r"```bash\n(.*?)```", page, re.DOTALL)), re.MULTILINE)
    assert len(commands) == 5
    for number, command in enumerate(commands, 1):
        arguments = shlex.split(command, comments=True)
        resumed = any(argument.startswith("resume=runs") for argument in arguments)
        quick = [f"total_timesteps={number * 88}", "algo.learning_rate_schedule=constant"]
        status, out, err = call(train, *(quick[:1] if resumed else SMALL + quick), *arguments[: 1 if resumed else None])
        assert status == 0, err
        assert ("goes on at" in out) == ("resume" in command), command
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, "resume.md", "exec"), names)
    assert names["model"].num_timesteps == 3072
    assert [found.steps for found in find_checkpoints("run/checkpoints")] == [3072, 2048]
    for name in ("policy.pt", "optimizer.pt", "progress.pt", "random.pt", "environment.pt", "callbacks.pt", "manifest.json"):
        assert name in page
    assert all(str(128 + number) in page for number in signals.STOPPING)


def test_an_error_of_tensorboards_writer_is_told_once(tmp_path, monkeypatch):
    printed = []
    monkeypatch.setattr(threading, "excepthook", printed.append)
    logger = make_logger(tmp_path)
    events = logger.output_formats[1].writer.file_writer.event_writer

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    def log_much():
        for step in range(1000):
            logger.record("a", step)
            logger.dump(step)
            events.flush()

    events._async_writer._writer.write = full
    with told_once(), pytest.raises(OSError, match="No space left"):
        log_much()
    assert printed == []
