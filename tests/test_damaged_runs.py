"""A run's folder that is damaged: each verb that reads it explains it in one line and ends with status 2."""

import base64
import importlib
import io
import json
import pickle
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from rmc_rl import MlpMemoryPolicy, RecurrentPPO, make_vec
from rmc_rl.runs.folder import save_model

# verbs that read a run, with arguments that make them quick
VERBS = {"evaluate": ["n_envs=1", "episodes=1", "device=cpu"]}
COPY = dict(n_symbols=4, length=3, delay=5)
CONFIG = "env: rmc_rl/Copy-v0\nenv_kwargs:\n  n_symbols: 4\n  length: 3\n  delay: 5\ncore:\n  name: gru\n  width: 4\n"


@pytest.fixture(scope="module", name="good")
def make_good_run(tmp_path_factory) -> Path:
    """A run as ``train`` leaves it."""
    folder = tmp_path_factory.mktemp("good")
    env = make_vec("rmc_rl/Copy-v0", 2, seed=0, env_kwargs=COPY)
    model = RecurrentPPO(MlpMemoryPolicy, env, n_steps=22, policy_kwargs=dict(core="gru", core_kwargs=dict(width=4)))
    save_model(model, folder / "model.zip")
    (folder / "best").mkdir()
    save_model(model, folder / "best" / "model.zip")
    (folder / "config.yaml").write_text(CONFIG)
    return folder


@pytest.fixture(name="run")
def make_run(good, tmp_path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(good, tmp_path / "run"))


def make_call(verb, monkeypatch, tmp_path, capsys):
    """Call a verb: exit status, standard output and the errors apart from the progress bar."""
    module = importlib.import_module(f"rmc_rl.{verb}")
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", [f"{verb}.py", *VERBS[verb], *arguments])
        status = 0
        try:
            module.main()
        except SystemExit as end:
            status = end.code
        printed = capsys.readouterr()
        return status, printed.out, [line for line in printed.err.splitlines() if line.strip() and "%|" not in line]

    return call


@pytest.fixture(name="called", params=VERBS)
def make_called(request, monkeypatch, tmp_path, capsys):
    """Call each verb."""
    return make_call(request.param, monkeypatch, tmp_path, capsys)


@pytest.fixture(name="evaluated")
def make_evaluated(monkeypatch, tmp_path, capsys):
    """Call evaluate, for what it alone does."""
    return make_call("evaluate", monkeypatch, tmp_path, capsys)


def rewrite(path, change):
    """Change the parts of a zip: ``change`` gets a dictionary of name -> bytes."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    change(parts)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data)


def in_data(**changes):
    """A change of the JSON part; None removes a key."""

    def change(parts):
        data = json.loads(parts["data"])
        for key, value in changes.items():
            data.pop(key, None)
            if value is not None:
                data[key] = value
        parts["data"] = json.dumps(data).encode()

    return change


def in_weights(change_one):
    """A change of the policy's first tensor."""

    def change(parts):
        weights = torch.load(io.BytesIO(parts["policy.pth"]), weights_only=True)
        name = next(name for name in weights if "weight" in name)
        changed = change_one(weights.pop(name))
        if changed is not None:
            weights[name] = changed
        buffer = io.BytesIO()
        torch.save(weights, buffer)
        parts["policy.pth"] = buffer.getvalue()

    return change


def without(name):
    return lambda parts: parts.pop(name)


def having(name, data):
    return lambda parts: parts.update({name: data})


ZIPS = {
    "no data": without("data"),
    "no weights": without("policy.pth"),
    "data cut": lambda parts: parts.update(data=parts["data"][:200]),
    "data empty": having("data", b""),
    "data is a list": having("data", b"[]"),
    "data is a number": having("data", b"3"),
    "data is not text": having("data", bytes(range(256))),
    "weights cut": lambda parts: parts.update({"policy.pth": parts["policy.pth"][:500]}),
    "weights empty": having("policy.pth", b""),
    "weights are text": having("policy.pth", b"hello"),
    "no policy class": in_data(policy_class=None),
    "policy class is a number": in_data(policy_class=3),
    "policy class is foreign": in_data(policy_class={":type:": "x", ":serialized:": "gASVCwAAAAAAAACMB25vd2hlcmWULg=="}),
    "pickle cut": in_data(policy_class={":type:": "x", ":serialized:": "gASV"}),
    "no observation space": in_data(observation_space=None),
    "observation space is text": in_data(observation_space="Box"),
    "no action space": in_data(action_space=None),
    "no policy_kwargs": in_data(policy_kwargs=None),
    "policy_kwargs of another core": in_data(policy_kwargs=dict(core="lstm")),
    "policy_kwargs of an unknown core": in_data(policy_kwargs=dict(core="nothing")),
    "policy_kwargs of a missing module": in_data(policy_kwargs=dict(core="nowhere:core")),
    "policy_kwargs are text": in_data(policy_kwargs="gru"),
    "n_steps is text": in_data(n_steps="many"),
    "n_envs is text": in_data(n_envs="many"),
    "a weight of another shape": in_weights(lambda _: torch.zeros(3, 3)),
    "a weight is missing": in_weights(lambda _: None),
    "weights of another type": in_weights(lambda _: "text"),
}


@pytest.mark.parametrize("damage", ZIPS)
def test_a_damaged_model_gets_one_line(run, called, damage):
    rewrite(run / "model.zip", ZIPS[damage])
    (run / "config.yaml").unlink()  # with it, only the weights are read: tests/test_loading.py
    keywords = [f"env_kwargs.{name}={value}" for name, value in COPY.items()]
    status, out, errors = called(f"run={run}", "env=rmc_rl/Copy-v0", "trust=true", *keywords)
    assert status == 2, out
    assert len(errors) == 1
    assert errors[0].startswith("error: ")


def bomb(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data", bytes(200_000_000))


FILES = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("no zip"),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:5000]),
    "a byte changed": lambda path: path.write_bytes(path.read_bytes()[:3000] + b"\xff" + path.read_bytes()[3001:]),
    "an empty zip": lambda path: zipfile.ZipFile(path, "w").close(),
    "another zip": lambda path: np.savez(path.open("wb"), a=np.zeros(3)),
    "huge when unpacked": bomb,
    "missing": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", FILES)
def test_a_damaged_file_gets_one_line(run, called, damage):
    FILES[damage](run / "model.zip")
    status, _, errors = called(f"run={run}")
    assert (status, len(errors)) == (2, 1), errors
    assert errors[0].startswith("error: model must ")


# about a billion values in 300 bytes
ALIASES = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9) if n else 'x'}]\n" for n in range(10))

CONFIGS = {
    "empty": "",
    "a list": "- 1\n",
    "text": "hello",
    "not closed": "env: [",
    "tabs": "env:\n\t- 3",
    "no env": CONFIG.replace("env: rmc_rl/Copy-v0\n", ""),
    "env is a number": CONFIG.replace("rmc_rl/Copy-v0", "3"),
    "env is null": CONFIG.replace("rmc_rl/Copy-v0", "null"),
    "env is unknown": CONFIG.replace("Copy-v0", "Copi-v0"),
    "env of a missing module": CONFIG.replace("rmc_rl/Copy-v0", "nowhere:Copy-v0"),
    "env_kwargs null": "env: rmc_rl/Copy-v0\nenv_kwargs: null\ncore: {}\n",
    "env_kwargs a list": "env: rmc_rl/Copy-v0\nenv_kwargs: [1]\ncore: {}\n",
    "env_kwargs unknown": CONFIG.replace("delay", "dealy"),
    "env_kwargs of another type": CONFIG.replace("delay: 5", "delay: {a: 1}"),
    "core is text": "env: rmc_rl/Copy-v0\nenv_kwargs: {}\ncore: rmc\n",
    "aliases": CONFIG + ALIASES,
    "looks something up": CONFIG.replace("delay: 5", "delay: ${oc.env:HOME}"),
    "looks itself up": CONFIG.replace("delay: 5", "delay: ${env_kwargs.delay}"),
    "half a lookup": CONFIG.replace("delay: 5", "delay: ${"),
    "a Python object": CONFIG + "x: !!python/object/apply:os.getcwd []\n",
    "deeply nested": CONFIG + "x: " + "[" * 3000 + "]" * 3000,
}


@pytest.mark.parametrize("damage", CONFIGS)
def test_a_damaged_configuration_gets_one_line(run, called, damage):
    (run / "config.yaml").write_text(CONFIGS[damage])
    status, _, errors = called(f"run={run}")
    assert (status, len(errors)) == (2, 1), errors
    assert errors[0].startswith("error: ")


def test_a_configuration_that_is_no_file_gets_one_line(run, called):
    (run / "config.yaml").write_bytes(bytes(range(256)))
    assert called(f"run={run}")[0] == 2
    (run / "config.yaml").unlink()
    (run / "config.yaml").mkdir()
    assert called(f"run={run}")[0] == 2


def test_a_folder_of_evaluations_that_is_none_gets_one_line(run, evaluated):
    (run / "evaluations").write_text("a file")
    status, _, errors = evaluated(f"run={run}")
    assert (status, len(errors)) == (2, 1)
    assert errors[0].startswith("error: the folder of evaluations must be one that can be written to")


class Creates:
    """Creates a file when it is unpickled."""

    def __reduce__(self):
        return (open, ("created", "w"))


def test_nothing_that_lies_in_a_run_is_executed(run, called, tmp_path):
    pickled = pickle.dumps(Creates())
    serialized = {":type:": "x", ":serialized:": base64.b64encode(pickled).decode()}
    rewrite(run / "model.zip", in_data(policy_class=serialized, observation_space=serialized, foreign=serialized))
    status, _, errors = called(f"run={run}")  # the weights are whole
    assert status == 0, errors
    rewrite(run / "model.zip", having("policy.pth", pickled))
    assert called(f"run={run}")[0] == 2
    for config in (
        CONFIG.replace("name: gru", "name: stranger:core"),
        CONFIG.replace("rmc_rl/Copy-v0", "stranger:Copy-v0"),
        CONFIG + "x: !!python/object/apply:os.system [touch created]\n",
    ):
        (run / "config.yaml").write_text(config)
        for folder in (run, tmp_path):
            (folder / "stranger.py").write_text("open('created', 'w').close()")
        status, _, errors = called(f"run={run}")
        assert (status, len(errors)) == (2, 1), errors
    assert not list(tmp_path.rglob("created"))


def test_a_result_that_cannot_be_written_is_printed_first(run, evaluated, monkeypatch):
    monkeypatch.setattr("rmc_rl.runs.folder._claim", lambda *_: (_ for _ in ()).throw(OSError("the disk is full")))
    status, out, errors = evaluated(f"run={run}")
    assert "return: mean" in out
    assert (status, len(errors)) == (2, 1)
    assert errors[0].startswith("error: the result above could not be written")


def test_any_model_can_be_evaluated(run, evaluated):
    shutil.copy(run / "model.zip", run / "best" / "elsewhere.zip")
    for arguments in (
        [f"run={run}", "model=best"],
        [f"model={run / 'best' / 'elsewhere.zip'}"],
        [f"model={run / 'model.zip'}"],
    ):
        status, out, errors = evaluated(*arguments)
        assert status == 0, errors
        assert "'delay': 5" in out
    assert len(list((run / "evaluations").glob("*.json"))) == 3


def test_a_model_from_python_can_be_evaluated(run, evaluated, tmp_path):
    (tmp_path / "mine").mkdir()
    shutil.copy(run / "model.zip", tmp_path / "mine")
    keywords = [f"env_kwargs.{name}={value}" for name, value in COPY.items()]
    for which in ("model=mine/model.zip", "run=mine"):
        status, _, errors = evaluated(which)
        assert (status, errors[0].startswith("error: env must be an environment's id")) == (2, True)
        status, out, errors = evaluated(which, "env=rmc_rl/Copy-v0", "trust=true", *keywords)
        assert status == 0, errors
        assert "return: mean" in out
    assert len(list((tmp_path / "mine" / "evaluations").glob("*.json"))) == 2
