"""Policies read back from a run's folder: nothing in it is executed, and each damage gets one line."""

import io
import json
import os
import pickle
import shutil
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from omegaconf import OmegaConf

from rmc_rl import MlpMemoryPolicy, RecurrentPPO, load_policy, make_vec
from rmc_rl.errors import UsageError
from rmc_rl.runs.folder import Run
from rmc_rl.runs.loading import read_policy
from rmc_rl.runs.signature import is_own, sign

CONFIG: dict[str, Any] = dict(
    env="rmc_rl/Copy-v0",
    env_kwargs=dict(n_symbols=3, length=2, delay=2),
    core=dict(name="rmc", num_slots=9, num_heads=2, head_size=4, kernel="auto"),
    policy=dict(previous_action_reward=False, critic="separate", encoder=[8], scale_output=True, log_std_init=0.0),
    algo=dict(name="ppo", use_sde=False),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder, whose zip also holds pickled values."""
    return write_run(tmp_path_factory.mktemp("runs") / "run", CONFIG)


def write_run(folder: Path, config: dict[str, Any]) -> Path:
    folder.mkdir()
    core = dict(config["core"])
    policy = {key: config["policy"][key] for key in ("critic", "encoder", "scale_output") if key in config["policy"]}
    env = make_vec(config["env"], 2, env_kwargs=config["env_kwargs"])
    model = RecurrentPPO(
        "MlpMemoryPolicy",
        env,
        n_steps=4,
        batch_size=8,
        use_sde=config["algo"]["use_sde"],
        policy_kwargs=dict(core=core.pop("name"), core_kwargs=core, **policy),
    )
    model.learn(8)
    model.save(folder / "model.zip")
    (folder / "best").mkdir()
    shutil.copy(folder / "model.zip", folder / "best")
    Run(folder).write_config(OmegaConf.create(config), "train")
    return folder


def acted(policy: Any, space: Any, steps: int = 6) -> list[Any]:
    state, found = None, []
    for step in range(steps):
        space.seed(step)
        actions, state = policy.predict(np.stack([space.sample(), space.sample()]), state, np.array([step % 3 == 0] * 2), True)
        found.append([actions, *state])
    return found


def test_a_loaded_policy_acts_as_the_saved_one(run: Path) -> None:
    saved = RecurrentPPO.load(run / "model.zip")
    for path in (run, str(run), run / "model.zip", run / "best" / "model.zip"):
        policy = load_policy(path)
        assert type(policy) is MlpMemoryPolicy
        for first, second in zip(acted(saved, saved.observation_space), acted(policy, saved.observation_space), strict=True):
            for one, two in zip(first, second, strict=True):
                np.testing.assert_array_equal(one, two)
    assert read_policy(Run(run), run / "model.zip").num_timesteps == 8


def test_gsde_and_previous_actions_and_images_load(tmp_path: Path) -> None:
    core = dict(name="lstm", width=4)
    gsde = CONFIG | dict(env="Pendulum-v1", env_kwargs={}, core=core, policy={}, algo=dict(use_sde=True))
    saved = RecurrentPPO.load(write_run(tmp_path / "gsde", gsde) / "model.zip")
    policy = load_policy(tmp_path / "gsde")
    space = saved.observation_space
    assert np.array_equal(acted(saved, space)[-1][0], acted(policy, space)[-1][0])
    policy.predict(space.sample())  # a sample needs exploration matrices
    for name, env, previous in (("previous", "rmc_rl/Copy-v0", True), ("images", "ALE/Pong-v5", False)):
        (tmp_path / name).mkdir()
        model = RecurrentPPO(
            "MultiInputMemoryPolicy" if previous else "CnnMemoryPolicy",
            make_vec(env, 1, previous_action_reward=previous),
            policy_kwargs=dict(core="lstm", core_kwargs=dict(width=4)),
        )
        model.save(tmp_path / name / "model.zip")
        config = CONFIG | dict(env=env, env_kwargs={}, core=core, policy=dict(previous_action_reward=previous))
        Run(tmp_path / name).write_config(OmegaConf.create(config), None)
        assert type(load_policy(tmp_path / name)) is type(model.policy)


class Creates:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return (open, (str(self.path), "w"))


def replace(path: Path, **parts: bytes | None) -> None:
    """Replace parts of a zip (``__`` stands for the dot); None removes one."""
    with zipfile.ZipFile(path) as archive:
        contents: dict[str, bytes] = {name: archive.read(name) for name in archive.namelist()}
    for name, data in parts.items():
        name = name.replace("__", ".")
        contents.pop(name, None)
        if data is not None:
            contents[name] = data
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in contents.items():
            archive.writestr(name, data)


def tensors(path: Path) -> dict[str, torch.Tensor]:
    with zipfile.ZipFile(path / "model.zip") as archive:
        return dict(torch.load(io.BytesIO(archive.read("policy.pth")), weights_only=True))


def packed(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def compressed(value: Any) -> bytes:
    """A file of tensors whose parts are compressed."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(packed(value))) as plain, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in plain.namelist():
            archive.writestr(name, plain.read(name))
    return file.getvalue()


def change_config(**changes: Any) -> Callable[[Path], None]:
    """Change the configuration; ``__`` in a key goes one level down, ``...`` removes the key."""

    def damage(path: Path) -> None:
        config = yaml.safe_load((path / "config.yaml").read_text())
        for key, value in changes.items():
            *nodes, last = key.split("__")
            node = config
            for name in nodes:
                node = node[name]
            node[last] = value
            if value is ...:
                del node[last]
        (path / "config.yaml").write_text(yaml.safe_dump(config))

    return damage


def text_config(text: str | bytes) -> Callable[[Path], None]:
    return lambda path: (path / "config.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())


def weights(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Change the tensors; the changed dictionary is kept if the change returns None."""

    def damage(path: Path) -> None:
        found = tensors(path)
        changed = change(found)
        replace(path / "model.zip", policy__pth=packed(found if changed is None else changed))

    return damage


def first(found: dict[str, Any]) -> str:
    return next(iter(found))


BOMB = "\n".join(["a0: &a0 [x, x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))])

DAMAGES: dict[str, Callable[[Path], Any]] = {
    "zip missing": lambda path: (path / "model.zip").unlink(),
    "zip empty": lambda path: (path / "model.zip").write_bytes(b""),
    "zip cut": lambda path: (path / "model.zip").write_bytes((path / "model.zip").read_bytes()[:-100]),
    "zip cut in the middle": lambda path: (path / "model.zip").write_bytes((path / "model.zip").read_bytes()[:20_000]),
    "zip begins elsewhere": lambda path: (path / "model.zip").write_bytes((path / "model.zip").read_bytes()[100:]),
    "zip is text": lambda path: (path / "model.zip").write_text("model"),
    "zip is a folder": lambda path: ((path / "model.zip").unlink(), (path / "model.zip").mkdir()),
    "zip is another zip": lambda path: zipfile.ZipFile(path / "model.zip", "w").writestr("a", "b"),
    "zip has no parts": lambda path: zipfile.ZipFile(path / "model.zip", "w").close(),
    "no weights": lambda path: replace(path / "model.zip", policy__pth=None),
    "no data": lambda path: replace(path / "model.zip", data=None),
    "data are no JSON": lambda path: replace(path / "model.zip", data=b"{"),
    "data are bytes": lambda path: replace(path / "model.zip", data=bytes(range(256))),
    "data are nested": lambda path: replace(path / "model.zip", data=b"[" * 5000),
    "weights empty": lambda path: replace(path / "model.zip", policy__pth=b""),
    "weights cut": lambda path: replace(path / "model.zip", policy__pth=packed(tensors(path))[:-200]),
    "weights pickled": lambda path: replace(path / "model.zip", policy__pth=pickle.dumps({"a": 1})),
    "weights of an object": lambda path: replace(path / "model.zip", policy__pth=packed(Creates(path / "created"))),
    "weights flipped": lambda path: replace(path / "model.zip", policy__pth=packed(tensors(path))[::-1]),
    "weights of a list": weights(lambda found: list(found.values())),
    "weights of numbers": weights(lambda found: dict.fromkeys(found, 1.0)),
    "weights of nothing": weights(lambda _found: {}),
    "a tensor missing": weights(lambda found: {name: found[name] for name in list(found)[1:]}),
    "a tensor more": weights(lambda found: found.update(more=torch.zeros(1))),
    "a name of a number": weights(lambda found: found.update({1: torch.zeros(1)})),
    "a tensor of another shape": weights(lambda found: found.update({first(found): torch.zeros(3, 3)})),
    "a tensor of another type": weights(lambda found: found.update({first(found): found[first(found)].double()})),
    "a sparse tensor": weights(lambda found: found.update({first(found): found[first(found)].to_sparse()})),
    "a tensor of NaN": weights(lambda found: found.update({first(found): found[first(found)] * torch.nan})),
    "a huge tensor": weights(lambda found: found.update({first(found): torch.zeros(10**6)})),
    "a huge compressed tensor": lambda path: replace(
        path / "model.zip", policy__pth=compressed(tensors(path) | {"core": torch.zeros(5 * 10**6)})
    ),
    "a huge view": weights(lambda found: found.update({first(found): torch.zeros(1).expand(10**12)})),
    "config missing": lambda path: (path / "config.yaml").unlink(),
    "config empty": text_config(""),
    "config of bytes": text_config(bytes(range(256))),
    "config of text": text_config("text"),
    "config of a list": text_config("[1, 2]"),
    "config cut": lambda path: (path / "config.yaml").write_text((path / "config.yaml").read_text()[:30]),
    "config of aliases": text_config(BOMB),
    "config of a tag": text_config("env: !!python/object/apply:os.system [touch created]\nenv_kwargs: {}\ncore: {}"),
    "config nested": text_config("[" * 3000),
    "config huge": text_config("a: " + "x" * (1 << 21)),
    "config looks up": change_config(env="${oc.env:HOME}"),
    "config is a folder": lambda path: ((path / "config.yaml").unlink(), (path / "config.yaml").mkdir()),
    "env missing": change_config(env=...),
    "env of a number": change_config(env=3),
    "env unknown": change_config(env="rmc_rl/Cpy-v0"),
    "env of other spaces": change_config(env="CartPole-v1", env_kwargs={}),
    "env_kwargs null": change_config(env_kwargs=None),
    "env_kwargs of a list": change_config(env_kwargs=[1]),
    "env_kwargs unknown": change_config(env_kwargs__dlay=3),
    "env_kwargs of a wrong type": change_config(env_kwargs__delay="long"),
    "env_kwargs of other spaces": change_config(env_kwargs__n_symbols=7),
    "env_kwargs huge": change_config(env_kwargs__n_symbols=10**15),
    "core missing": change_config(core=...),
    "core of text": change_config(core="rmc"),
    "core without a name": change_config(core__name=...),
    "core of a number": change_config(core__name=3),
    "core unknown": change_config(core__name="rmcc"),
    "core argument unknown": change_config(core__slots=3),
    "core argument of a wrong type": change_config(core__num_slots="many"),
    "core of other sizes": change_config(core__num_slots=3),
    "core of huge sizes": change_config(core__num_slots=10**9, core__head_size=10**9),
    "policy of text": change_config(policy="mlp"),
    "policy of another critic": change_config(policy__critic="shared"),
    "policy of an unknown critic": change_config(policy__critic="own"),
    "policy of a wrong encoder": change_config(policy__encoder="wide"),
    "policy of wrong layers": change_config(policy__net_arch={"pi": "x"}),
    "policy of huge layers": change_config(policy__net_arch=[10**9, 10**9]),
    "previous actions of text": change_config(policy__previous_action_reward="no"),
    "previous actions": change_config(policy__previous_action_reward=True),
    "use_sde of text": change_config(algo__use_sde="no"),
    "use_sde without Box": change_config(algo__use_sde=True),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_run_gets_one_line_and_executes_nothing(
    damage: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"
    shutil.copytree(run, path)
    DAMAGES[damage](path)
    monkeypatch.chdir(path)
    tracemalloc.start()
    try:
        with pytest.raises(UsageError) as caught:
            load_policy(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1500
    assert peak < 50_000_000
    assert not (path / "created").exists()


def test_a_folder_that_is_missing_or_no_run_gets_one_line(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing", tmp_path / "model.zip", "\0", "~nobody/x"):
        with pytest.raises(UsageError):
            load_policy(path)


def test_pickled_values_of_a_zip_are_never_read(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    shutil.copytree(run, path)
    with zipfile.ZipFile(path / "model.zip") as archive:
        data = json.loads(archive.read("data"))
    serialized = {":type:": "x", ":serialized:": pickle.dumps(Creates(path / "created")).hex()}
    every = {name: serialized for name in (*data, "unknown")} | {"num_timesteps": serialized}
    foreign = pickle.dumps(Creates(path / "created"))
    replace(
        path / "model.zip", data=json.dumps(every).encode(), policy__optimizer__pth=foreign, pytorch_variables__pth=foreign
    )
    assert read_policy(Run(path), path / "model.zip").num_timesteps is None
    assert not (path / "created").exists()


@pytest.mark.parametrize("key", ["env", "core__name"])
def test_a_module_that_a_run_names_is_imported_only_with_trust(
    key: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"
    shutil.copytree(run, path)
    (path / "stranger.py").write_text("open('created', 'w').close()")
    name = "rmc_rl/Copy-v0" if key == "env" else "rmc"
    change_config(**{key: f"stranger:{name}"})(path)
    monkeypatch.chdir(path)
    monkeypatch.syspath_prepend(path)
    with pytest.raises(UsageError, match="trust=true"):
        load_policy(path)
    assert not (path / "created").exists()
    load_policy(path, trust=True)
    assert (path / "created").exists()
    sys.modules.pop("stranger")


def test_a_module_that_a_run_of_ones_own_names_is_imported(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run"
    shutil.copytree(run, path)
    (tmp_path / "mine.py").write_text("")
    change_config(env="mine:rmc_rl/Copy-v0")(path)
    monkeypatch.syspath_prepend(tmp_path)

    def is_read() -> bool:
        sys.modules.pop("mine", None)
        try:
            load_policy(path)
        except UsageError:
            return False
        return True

    assert not is_read()  # changed since it was signed
    sign(path / "config.yaml")
    assert is_read()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another user"))
    assert not is_read()
    sign(path / "config.yaml")
    assert (tmp_path / "another user" / "rmc-rl" / "key").stat().st_mode & 0o777 == 0o600
    assert is_read()
    (path / ".signature").unlink()
    assert not is_read()
    (path / ".signature").mkdir()
    assert not is_read()


def test_without_a_place_for_the_key_nothing_is_signed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    config = tmp_path / "config.yaml"
    config.write_text("env: x")
    sign(config)
    assert not (tmp_path / ".signature").exists()
    assert not is_own(config)


def test_an_id_whose_entry_point_would_import_a_stranger_needs_trust(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gymnasium

    path = tmp_path / "run"
    shutil.copytree(run, path)
    (path / "stranger.py").write_text("open('created', 'w').close()")
    gymnasium.register("Stranger-v0", "stranger:Env")
    try:
        change_config(env="Stranger-v0", env_kwargs={})(path)
        monkeypatch.chdir(path)
        monkeypatch.syspath_prepend(path)
        with pytest.raises(UsageError, match="trust=true"):
            load_policy(path)
    finally:
        del gymnasium.registry["Stranger-v0"]
    assert not (path / "created").exists()
    assert os.getcwd() == str(path)
