"""Checkpoints: a run that was stopped and resumed is the run that was never stopped."""

import csv
import json
import pickle
import shutil
import subprocess
import sys
import threading
import time
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import resumable
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper, VecNormalize

from rmc_rl import make_vec
from rmc_rl.envs.registration import WORLDS
from rmc_rl.envs.resumable import Resumable
from rmc_rl.errors import UsageError
from rmc_rl.runs import checkpoint as module
from rmc_rl.runs.checkpoint import MANIFEST, Checkpoint, Checkpoints, find_checkpoints, load_checkpoint, save_checkpoint
from rmc_rl.runs.curves import ProgressFile, make_logger
from rmc_rl.runs.environment import put_state, take_state
from rmc_rl.runs.plain import from_plain, to_plain

HERE = Path(__file__).parent


def same(first: Any, second: Any) -> bool:
    """Whether two nestings of values are equal, bit for bit."""
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second or (first != first and second != second))


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All cases, stopped in this process and resumed in a new one."""
    folder = tmp_path_factory.mktemp("runs")
    for case in resumable.CASES:
        resumable.stop(case, folder / case / "checkpoints")
    subprocess.run([sys.executable, str(HERE / "resumable.py"), str(folder), *resumable.CASES], check=True)
    return folder


@pytest.mark.parametrize("case", resumable.CASES)
def test_a_resumed_run_equals_one_that_was_never_stopped(case: str, resumed: Path) -> None:
    model = resumable.CASES[case]()
    expected = resumable.train(model, resumable.ROLLOUTS * resumable.N_STEPS * model.n_envs)
    found = torch.load(resumed / case / "resumed.pt", weights_only=False)
    rows = expected["rows"][resumable.STOPPED_AFTER :]
    if case == "stock":  # counts iterations from the start of each call of learn
        for row in (*rows, *found["rows"]):
            row.pop("time/iterations")
    assert same(found["rows"], rows)
    assert same(found["weights"], expected["weights"])
    assert same(found["optimizer"], expected["optimizer"])
    assert len(rows) == resumable.ROLLOUTS - resumable.STOPPED_AFTER
    assert np.isfinite(rows[-1]["train/loss"])


def played(env: VecEnv, seed: int = 0, steps: int = 40) -> list[Any]:
    """Observations, rewards and ends of random play, from where an environment is."""
    generator = np.random.default_rng(seed)
    found: list[Any] = []
    for _ in range(steps):
        actions = np.stack([_drawn(env.action_space, generator) for _ in range(env.num_envs)])
        found.append(list(env.step(actions)[:3]))
    return found


def _drawn(space: gymnasium.Space[Any], generator: np.random.Generator) -> np.ndarray:
    space.seed(int(generator.integers(2**31)))
    return np.asarray(space.sample())


@pytest.mark.parametrize("env_id", [*sorted(WORLDS), "CartPole-v1", "Pendulum-v1", "MiniGrid-MemoryS7-v0", "processes"])
def test_the_state_of_an_environment_comes_back(env_id: str) -> None:
    processes = env_id == "processes"
    env_id = "MiniGrid-MemoryS7-v0" if processes else env_id
    env = make_vec(env_id, 3, seed=1, processes=processes)
    env.reset()
    played(env)
    state = take_state(env)
    assert state.inexact == []
    kept = from_plain_state(state)
    expected = played(env, seed=1)
    other = make_vec(env_id, 3, seed=2, processes=processes)
    other.reset()
    assert put_state(other, kept, seed=0) is None
    found = played(other, seed=1)
    for first, second in zip(expected, found, strict=True):
        for one, two in zip(first, second, strict=True):
            np.testing.assert_array_equal(one, two)
    env.close()
    other.close()


def test_a_range_that_was_changed_while_training_comes_back() -> None:
    envs = [make_vec("rmc_rl/Copy-v0", 2, seed=1) for _ in range(2)]
    for env in envs:
        env.reset()
    envs[0].set_attr("delay", (1, 3))
    put_state(envs[1], from_plain_state(take_state(envs[0])), seed=0)
    assert envs[1].get_attr("delay") == [(1, 3)] * 2


def from_plain_state(state: Any) -> Any:
    return state._replace(layers=from_plain(to_plain(state.layers)))


def test_environments_that_cannot_be_saved_start_their_episodes_again_and_the_manifest_says_so(tmp_path: Path) -> None:
    env = make_vec("ALE/Pong-v5", 2, seed=1)
    model = resumable._model(env, "lstm", policy="CnnMemoryPolicy", n_steps=4, batch_size=8)
    resumable.train(model, 8, Checkpoints(tmp_path))
    checkpoint = find_checkpoints(tmp_path)[0]
    assert "episodes are started again" in checkpoint.inexact["environment"]
    model = resumable._model(make_vec("ALE/Pong-v5", 2, seed=1), "lstm", policy="CnnMemoryPolicy", n_steps=4, batch_size=8)
    load_checkpoint(checkpoint, model)
    assert model._last_episode_starts.all()
    assert model._last_obs.shape == (2, 1, 84, 84)


def test_statistics_of_normalisation_stay_when_episodes_start_again() -> None:
    makers = [lambda: gymnasium.make("CartPole-v1")] * 2
    envs = [VecNormalize(SubprocVecEnv(makers)) for _ in range(2)]  # not those of make_vec
    try:
        envs[0].reset()
        played(envs[0])
        state = take_state(envs[0])
        assert "SubprocVecEnv" in state.inexact[0]
        observations = put_state(envs[1], state, seed=5)
        np.testing.assert_array_equal(envs[1].obs_rms.mean, envs[0].obs_rms.mean)
        np.testing.assert_array_equal(observations, envs[1].normalize_obs(envs[1].get_original_obs()))
        assert envs[1].training
    finally:
        for env in envs:
            env.close()


class Reconstructed(gymnasium.utils.EzPickle, gymnasium.Env[Any, Any]):
    """An environment whose pickle forgets where it is, as MuJoCo's do."""

    observation_space = action_space = gymnasium.spaces.Discrete(2)


def test_environments_that_pickle_only_their_arguments_count_as_not_saved() -> None:
    state = take_state(DummyVecEnv([Reconstructed]))
    assert state.pickled is None
    assert "Reconstructed" in state.inexact[0]


def test_processes_that_cannot_save_their_environment_say_so_and_live_on() -> None:
    env = SubprocVecEnv([lambda: Resumable(Unpicklable())])
    env.reset()
    assert "Unpicklable cannot be pickled" in take_state(env).inexact[0]
    assert "cannot be unpickled" in env.env_method("put_state", b"foreign")[0]
    env.step(np.array([1 if env.get_attr("forbidden")[0] != 1 else 0]))
    env.close()


class Unpicklable(resumable.Masked):
    def __init__(self) -> None:
        self.lock = threading.Lock()


class Unknown(VecEnvWrapper):
    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        return self.venv.step_wait()


def test_environments_that_do_not_pickle_and_unknown_wrappers_are_named() -> None:
    env = Unknown(DummyVecEnv([lambda: Unpicklable()]))
    state = take_state(env)
    assert "Unknown" in state.inexact[0]
    assert "Unpicklable" in state.inexact[1]


@pytest.mark.parametrize(
    "value",
    [
        np.arange(6, dtype=np.uint32).reshape(2, 3),
        np.float32(1 / 3),
        np.array(["a", "bc"]),
        np.zeros((0, 3), dtype=bool),
        [1, (2.5, None, True), {"a": {3: torch.ones(2, dtype=torch.bfloat16)}}],
    ],
)
def test_plain_data_come_back_with_type_and_shape(value: Any, tmp_path: Path) -> None:
    torch.save(to_plain(value), tmp_path / "file.pt")
    found = from_plain(torch.load(tmp_path / "file.pt", weights_only=True))
    if isinstance(value, np.ndarray | np.generic):
        assert type(found) is type(value)
        assert found.dtype == value.dtype
        np.testing.assert_array_equal(found, value)
    else:
        assert same(found, value)


def test_values_that_are_no_plain_data_are_refused() -> None:
    for value in (object(), np.array([object()]), {"a": Path()}):
        with pytest.raises(UsageError, match="must"):
            to_plain(value)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two checkpoints of one run."""
    folder = tmp_path_factory.mktemp("stopped")
    resumable.train(resumable.CASES["copy lstm"](), 128, Checkpoints(folder, every=64))
    return folder


def test_the_newest_checkpoints_are_kept_and_found_newest_first(stopped: Path, tmp_path: Path) -> None:
    assert [checkpoint.steps for checkpoint in find_checkpoints(stopped)] == [128, 64]
    resumable.train(resumable.CASES["copy lstm"](), 320, Checkpoints(tmp_path, every=64, keep=3))
    assert [checkpoint.steps for checkpoint in find_checkpoints(tmp_path)] == [320, 256, 192]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["192", "256", "320"]


DAMAGES = {
    "missing part": lambda path: (path / "random.pt").unlink(),
    "cut part": lambda path: (path / "policy.pt").write_bytes((path / "policy.pt").read_bytes()[:-10]),
    "changed part": lambda path: (path / "policy.pt").write_bytes((path / "policy.pt").read_bytes()[:-1] + b"!"),
    "empty part": lambda path: (path / "optimizer.pt").write_bytes(b""),
    "no manifest": lambda path: (path / MANIFEST).unlink(),
    "empty manifest": lambda path: (path / MANIFEST).write_text(""),
    "cut manifest": lambda path: (path / MANIFEST).write_text((path / MANIFEST).read_text()[:100]),
    "manifest of a list": lambda path: (path / MANIFEST).write_text("[1]"),
    "manifest of bytes": lambda path: (path / MANIFEST).write_bytes(bytes(range(256))),
    "huge manifest": lambda path: (path / MANIFEST).write_bytes(b" " * (1 << 21)),
    "nested manifest": lambda path: (path / MANIFEST).write_text("[" * 2_000),
    "other format": lambda path: edit(path, format=2),
    "steps of text": lambda path: edit(path, steps="many"),
    "files of text": lambda path: edit(path, files="policy.pt"),
    "foreign file": lambda path: edit(path, files={"../model.zip": {}}),
    "no files": lambda path: edit(path, files=None),
    "folder instead of a part": lambda path: ((path / "policy.pt").unlink(), (path / "policy.pt").mkdir()),
}


def edit(path: Path, **changes: Any) -> None:
    manifest = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps(manifest | changes))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_gets_one_line_and_the_older_one_is_taken(damage: str, stopped: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(stopped, folder)
    DAMAGES[damage](folder / "128")
    with pytest.raises(UsageError) as caught:
        Checkpoint.open(folder / "128")
    assert "\n" not in str(caught.value)
    with pytest.warns(UserWarning, match="skipped"):
        assert [checkpoint.steps for checkpoint in find_checkpoints(folder)] == [64]


@pytest.mark.parametrize("part", [*(f"{name}.pt" for name in module.PARTS)])
def test_parts_with_right_checksums_and_foreign_content_get_one_line(part: str, stopped: Path, tmp_path: Path) -> None:
    for index, data in enumerate((b"foreign", module._packed({"a": 1}), module._packed([1]), pickle.dumps(Path("x")))):
        folder = tmp_path / str(index) / "checkpoints"
        shutil.copytree(stopped, folder)
        path = folder / "128"
        (path / part).write_bytes(data)
        files = json.loads((path / MANIFEST).read_text())["files"]
        edit(path, files=files | {part: {"bytes": len(data), "sha256": module._sha256(data)}})
        with pytest.raises(UsageError) as caught:
            load_checkpoint(path, resumable.CASES["copy lstm"]())
        assert "\n" not in str(caught.value)


def test_a_folder_without_checkpoints_gets_one_line(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    for folder in (tmp_path, tmp_path / "missing"):
        assert find_checkpoints(folder) == []
        with pytest.raises(UsageError, match="whole checkpoint"):
            Checkpoints(folder).resume(resumable.CASES["copy lstm"]())


def test_a_checkpoint_of_other_settings_gets_one_line_that_names_the_setting(stopped: Path) -> None:
    others = {
        "n_envs": resumable._model(make_vec("rmc_rl/Copy-v0", 2, env_kwargs=resumable.COPY), "lstm"),
        "n_steps": resumable._copy("lstm", n_steps=8),
        "observation space": resumable._model(make_vec("rmc_rl/Copy-v0", 4, env_kwargs=dict(n_symbols=5)), "lstm"),
        "policy": resumable._copy("rmc"),
        "wrapped": resumable._model(
            VecNormalize(make_vec("rmc_rl/Copy-v0", 4, env_kwargs=resumable.COPY), norm_obs=False), "lstm"
        ),
    }
    for name, model in others.items():
        with pytest.raises(UsageError, match=name) as caught:
            load_checkpoint(stopped / "128", model)
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="named callbacks"):
        load_checkpoint(stopped / "128", resumable.CASES["copy lstm"](), {"best": Best()})


def test_other_versions_of_packages_get_a_warning(stopped: Path, tmp_path: Path) -> None:
    shutil.copytree(stopped / "128", tmp_path / "128")
    edit(tmp_path / "128", made_with=dict(torch="1.0"))
    with pytest.warns(UserWarning, match=r"torch 1\.0"):
        load_checkpoint(tmp_path / "128", resumable.CASES["copy lstm"]())


def test_a_checkout_that_is_not_installed_is_saved_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = metadata.version

    def version(package: str) -> str:
        if package == "rmc-rl":
            raise metadata.PackageNotFoundError(package)
        return known(package)

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(module, "_versions", module._versions.__wrapped__)  # which remembers nothing
    model = resumable.CASES["copy lstm"]()
    model.learn(128)
    save_checkpoint(tmp_path, model)
    monkeypatch.undo()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # one would say that another version had made it
        load_checkpoint(tmp_path / "128", resumable.CASES["copy lstm"]())


def test_a_write_that_fails_leaves_the_older_checkpoints_and_no_partial_folder(
    stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(stopped, folder)
    (folder / ".partial-killed").mkdir()
    model = resumable.CASES["copy lstm"]()
    model.learn(192)

    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            save_checkpoint(folder, model)
    assert sorted(path.name for path in folder.iterdir()) == ["128", "64"]
    save_checkpoint(folder, model)
    save_checkpoint(folder, model)  # replaces the one of the same steps
    assert [checkpoint.steps for checkpoint in find_checkpoints(folder)] == [192, 128]


def test_a_process_that_is_killed_while_it_deletes_an_old_checkpoint_leaves_no_damaged_one(
    stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(stopped, folder)
    model = resumable.CASES["copy lstm"]()
    model.learn(192)

    def killed(path: Path, **_: Any) -> None:
        if path.name.endswith("64"):
            (path / MANIFEST).unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(folder, model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [checkpoint.steps for checkpoint in find_checkpoints(folder)] == [192, 128]
    save_checkpoint(folder, model)
    assert sorted(path.name for path in folder.iterdir()) == ["128", "192"]


def test_everything_is_synced_before_the_folder_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    fsync, rename = module.os.fsync, Path.rename
    monkeypatch.setattr(module.os, "fsync", lambda handle: (synced.append("sync"), fsync(handle)))
    monkeypatch.setattr(Path, "rename", lambda path, target: (synced.append("rename"), rename(path, target))[1])
    model = resumable.CASES["copy lstm"]()
    model.learn(64)
    path = save_checkpoint(tmp_path, model)
    files = len(list(path.iterdir()))
    assert synced == ["sync"] * (files + 1) + ["rename", "sync"]  # files and folder; then the folder around it


class Best(BaseCallback):
    """A callback that carries a number."""

    best = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = state["best"]

    def _on_step(self) -> bool:
        self.best += 0.1
        return True


def test_what_a_callback_carries_comes_back(tmp_path: Path) -> None:
    best = Best()
    checkpoints = Checkpoints(tmp_path, callbacks=dict(best=best))
    resumable.CASES["copy lstm"]().learn(64, callback=[checkpoints, best])
    again = Best()
    Checkpoints(tmp_path, callbacks=dict(best=again)).resume(resumable.CASES["copy lstm"]())
    assert again.best == best.best > 0


@pytest.mark.parametrize("case", ["copy rmc", "pendulum"])
def test_a_run_that_has_ended_goes_on_as_if_it_had_been_longer(case: str, tmp_path: Path) -> None:
    model = resumable.CASES[case]()
    rollout = resumable.N_STEPS * model.n_envs
    expected = resumable.train(model, 3 * rollout)
    resumable.train(resumable.CASES[case](), 2 * rollout, Checkpoints(tmp_path))
    model, checkpoints = resumable.CASES[case](), Checkpoints(tmp_path)
    assert checkpoints.resume(model) == 0
    found = resumable.train(model, rollout, checkpoints, again=True)
    assert same(found["rows"], expected["rows"][2:])
    assert same(found["weights"], expected["weights"])


def test_training_that_a_callback_ends_in_a_rollout_leaves_no_checkpoint_of_that_moment(tmp_path: Path) -> None:
    model = resumable.CASES["copy lstm"]()

    class End(BaseCallback):
        def _on_step(self) -> bool:
            return self.num_timesteps < 100

    model.learn(1000, callback=[Checkpoints(tmp_path, every=64), End()])
    assert [checkpoint.steps for checkpoint in find_checkpoints(tmp_path)] == [64]
    model.rollout_buffer.pos = 3
    with pytest.raises(UsageError, match="between two rollouts"):
        save_checkpoint(tmp_path, model)


def test_a_checkpoint_of_a_small_policy_takes_less_than_50_ms(tmp_path: Path) -> None:
    model = resumable.CASES["copy rmc"]()
    model.learn(64)
    seconds = []
    for _ in range(10):
        started = time.process_time()
        save_checkpoint(tmp_path, model)
        seconds.append(time.process_time() - started)
    assert min(seconds) < 0.05


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_progress_file_of_a_resumed_run_is_that_of_one_that_was_never_stopped(tmp_path: Path) -> None:
    def write(file: ProgressFile, rows: range) -> None:
        for row in rows:
            values: dict[str, Any] = {"time/total_timesteps": row, "a": row / 3, "text": 'a "b", c'}
            values |= {"later": 1.0} if row > 2 else {}
            file.write(values, dict.fromkeys(values, ()))

    file = ProgressFile(tmp_path / "whole.csv")
    write(file, range(6))
    for stopped_after in (6, 4, 2):  # at 4 and 2 rows come after the checkpoint
        (tmp_path / "cut.csv").unlink(missing_ok=True)
        file = ProgressFile(tmp_path / "cut.csv")
        write(file, range(stopped_after))
        file.sync()
        file.file.write("5,0.")  # killed while it wrote
        file.close()
        file = ProgressFile(tmp_path / "cut.csv", resumed_at=1)
        assert len(rows_of(tmp_path / "cut.csv")) == 2
        write(file, range(2, 6))
        file.close()
        assert (tmp_path / "cut.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    (tmp_path / "cut.csv").write_bytes(b"a,b\n1,2\n")
    with pytest.raises(UsageError, match="progress file"):
        ProgressFile(tmp_path / "cut.csv", resumed_at=1)


def test_a_resumed_run_has_one_curve(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for begin, end, resumed_at in ((1, 5, None), (3, 7, 2)):
        logger = make_logger(tmp_path, resumed_at)
        for step in range(begin, end):
            logger.record("time/total_timesteps", step)
            logger.record("value", 10.0 * step + (resumed_at or 0))
            logger.dump(step)
        logger.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    expected = [(1, 10.0), (2, 20.0), (3, 32.0), (4, 42.0), (5, 52.0), (6, 62.0)]
    assert [(event.step, event.value) for event in events.Scalars("value")] == expected
    rows = rows_of(tmp_path / "progress.csv")
    assert [(int(row["time/total_timesteps"]), float(row["value"])) for row in rows] == expected
