"""Shared runs: a folder that tells no paths, a model card that the Hub reads, and policies that come back equal."""

import importlib
import json
import re
import shutil
import sys
import zipfile
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import sb3_contrib
import torch
import yaml
from omegaconf import OmegaConf

from rmc_rl import MlpMemoryPolicy, RecurrentPPO, evaluate, load_policy, make_vec, share
from rmc_rl.errors import UsageError
from rmc_rl.runs import sharing
from rmc_rl.runs.folder import Run, save_model
from rmc_rl.runs.normalization import normalize

KEYWORDS = dict(n_vectors=3, dim=2)


@pytest.fixture(name="run", scope="module")
def make_run(tmp_path_factory):
    """A run that was evaluated, with a film."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    env = normalize(make_vec("rmc_rl/NthFarthest-v0", 2, env_kwargs=KEYWORDS), "obs", 0.99)
    core = dict(name="gru", width=4)
    model = RecurrentPPO(
        MlpMemoryPolicy, env, n_steps=4, batch_size=8, policy_kwargs=dict(core="gru", core_kwargs=dict(width=4))
    )
    model.learn(8)
    folder.mkdir()
    save_model(model, folder / "model.zip")
    config = dict(env="rmc_rl/NthFarthest-v0", env_kwargs=KEYWORDS, core=core, policy={}, seed=3, runs_dir=str(folder.parent))
    Run(folder).write_config(OmegaConf.create(config), f"train runs_dir={folder.parent}")
    (folder / "films").mkdir()
    (folder / "films" / "20260101-000000-episode0.gif").write_bytes(b"older kind")
    (folder / "films" / "20260101-000000-episode0.mp4").write_bytes(b"film")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["evaluate.py", f"run={folder}", "episodes=4", "n_envs=2", "seed=77", "device=cpu"])
        evaluate.main()
    return folder


@pytest.fixture(name="call")
def make_call(call):
    return lambda *arguments, verb=share: call(verb, *arguments)


def acted(policy):
    state, found = None, []
    for step in range(6):
        policy.observation_space.seed(step)
        observation = np.stack([policy.observation_space.sample() for _ in range(2)])
        action, state = policy.predict(observation, state, np.array([step % 3 == 0] * 2), True)
        found += [action, *state]
    return found


def equal(first, second):
    return all(np.array_equal(one, two) for one, two in zip(acted(first), acted(second), strict=True))


def test_a_run_is_shared_and_comes_back(run, call, tmp_path, monkeypatch, checkout):
    status, out, err = call(f"run={run}", "to=shared", "repository=me/copy", "license=mit")
    assert (status, err) == (0, "")
    assert "hf upload me/copy shared" in out
    shared = tmp_path / "shared"
    names = ("README.md", "config.yaml", "evaluation.json", "model.normalization.json", "model.safetensors", "model.zip")
    assert sorted(path.name for path in shared.iterdir()) == sorted([*names, "replay.mp4"])
    original = load_policy(run)
    assert equal(load_policy(shared), original)
    (block,) = re.findall(r"```python\n(.*?)```", (checkout / "docs" / "sharing.md").read_text(), re.DOTALL)
    names = {}
    exec(compile(block, "sharing.md", "exec"), names)
    assert equal(names["policy"], original)
    assert equal(load_policy(shared / "model.safetensors"), original)
    assert equal(sb3_contrib.RecurrentPPO.load(shared / "model.zip").policy, original)

    # without the zip, as the Hub's download leaves it
    (shared / "model.zip").unlink()
    assert equal(load_policy(shared), original)
    status, out, err = call("run=shared", "episodes=4", "n_envs=2", "seed=77", "device=cpu", verb=evaluate)
    assert (status, "time: " in out) == (0, True)
    kept = json.loads((shared / "evaluation.json").read_text())
    again = json.loads(next((shared / "evaluations").glob("*.json")).read_text())
    assert again["return"] == kept["return"]
    assert again["timesteps_trained"] == kept["timesteps_trained"] == 8

    asked = []

    def snapshot_download(repository, revision=None, allow_patterns=None):
        asked.append((repository, revision, allow_patterns))
        return str(shared)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert equal(load_policy("hf://me/copy@v1"), original)
    assert equal(load_policy("hf://me/copy"), original)
    assert [each[:2] for each in asked] == [("me/copy", "v1"), ("me/copy", None)]
    assert "model.zip" not in asked[0][2]


def test_the_card_states_the_evaluation_and_nothing_tells_a_path(run, call, tmp_path):
    assert call(f"run={run}", "to=shared")[0] == 0
    shared = tmp_path / "shared"
    found = json.loads(next((run / "evaluations").glob("*.json")).read_text())
    card = huggingface_hub.ModelCard.load(shared / "README.md")
    assert card.data.library_name == "stable-baselines3"
    assert {"rmc-rl", "gru", "rmc_rl/NthFarthest-v0"} <= set(card.data.tags)
    (result,) = card.data.eval_results
    mean, deviation = found["return"]["mean"], found["return"]["std"]
    assert (result.metric_type, result.metric_value) == ("mean_reward", f"{mean:.2f} +/- {deviation:.2f}")
    low, high = found["return"]["interval"]
    assert f"| 4 | {mean:.3f} | {low:.3f} to {high:.3f} |" in card.text
    assert "the seed of the evaluation is 77, that of training 3" in card.text
    config = yaml.safe_load((shared / "config.yaml").read_text())
    assert config["env_kwargs"] == KEYWORDS
    assert "runs_dir" not in config
    assert "command" not in config["run"]
    for path in shared.rglob("*"):
        for data in sharing._contents(path):
            assert str(run).encode() not in data
            assert str(tmp_path).encode() not in data
            assert str(Path.home() / "").encode() not in data


def test_a_path_of_the_machine_is_refused(run, call, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(run, other)
    with zipfile.ZipFile(other / "model.zip", "a") as archive:
        archive.writestr("notes.txt", f"tensorboard: {tmp_path}/tb")
    status, out, err = call(f"run={other}", "to=shared")
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert f"model.zip must hold no path of this machine; zip=false leaves it out, got '{tmp_path}" in err
    assert not list((tmp_path / "shared").iterdir())
    assert call(f"run={other}", "to=shared", "zip=false")[0] == 0
    assert not (tmp_path / "shared" / "model.zip").exists()


def test_only_the_name_of_a_file_stays():
    given = {"a": ["/data/x.npz", "~/y", r"C:\z\w.npz", "rmc_rl/Copy-v0", 3], "b": {"c": "/"}}
    assert sharing.without_paths(given) == {"a": ["x.npz", "y", "w.npz", "rmc_rl/Copy-v0", 3], "b": {"c": ""}}


def test_mistakes_get_one_line(run, call, tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    unevaluated = tmp_path / "unevaluated"
    shutil.copytree(run, unevaluated)
    (result,) = (unevaluated / "evaluations").glob("*.json")
    result.write_text(json.dumps(json.loads(result.read_text()) | dict(timesteps_trained=4)))  # of an earlier model
    for arguments, line in [
        ([f"run={run}"], "to must be a new or empty folder, as in to=shared, got None"),
        ([f"run={run}", "to=full"], "to must be a new or empty folder, got 'full'"),
        ([f"run={run}", "to=full/file"], "to must be a folder that can be written to"),
        ([f"run={run}", "to=shared", "model=model.zip"], "unknown model 'model.zip'"),
        ([f"run={unevaluated}", "to=shared"], "rmc_rl.evaluate"),
        (["to=shared"], "run must be the folder of a run"),
    ]:
        status, out, err = call(*arguments)
        assert (status, out, len(err.splitlines())) == (2, "", 1), arguments
        assert line in err
        assert not (tmp_path / "shared").exists()
    for address in ("hf://copy", "hf://a/b/c"):
        with pytest.raises(UsageError, match="run must be hf://user/name"):
            load_policy(address)

    def fail(*_args, **_kwargs):
        raise OSError("no\nnetwork")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(
        UsageError, match="a repository of the Hub that can be reached, got 'hf://me/copy': OSError: no network"
    ):
        load_policy("hf://me/copy")
    imported = importlib.import_module

    def without(name, *rest):
        if name.startswith(("safetensors", "huggingface_hub")):
            raise ImportError(name)
        return imported(name, *rest)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(UsageError, match=r"pip install 'rmc-rl\[hub\]'"):
        load_policy("hf://me/copy")
    with pytest.raises(UsageError, match=r"weights as safetensors need more packages: pip install 'rmc-rl\[hub\]'"):
        sharing.write_weights(tmp_path / "x.safetensors", {}, None)


def test_damaged_weights_get_one_line(run, call, tmp_path):
    assert call(f"run={run}", "to=shared", "zip=false")[0] == 0
    path = tmp_path / "shared" / "model.safetensors"
    whole = path.read_bytes()
    for data in (whole[:50], b"", b"x" * 200, whole + b"x" * 100_000_000):
        path.write_bytes(data)
        with pytest.raises(UsageError, match=r"model must be a file of safetensors"):
            load_policy(tmp_path / "shared")
    sharing.write_weights(path, {"other": torch.zeros(3)}, None)
    with pytest.raises(UsageError, match="it must hold the tensors of the run's policy"):
        load_policy(tmp_path / "shared")


def test_the_page_names_every_file(checkout):
    page = (checkout / "docs" / "sharing.md").read_text()
    for name in (sharing.CARD, sharing.CONFIG, sharing.WEIGHTS, sharing.EVALUATION, sharing.ZIP):
        assert f"`{name}`" in page


def test_huggingface_sb3_loads_the_zip(run, call, tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_sb3")
    assert call(f"run={run}", "to=shared")[0] == 0
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repo_id, filename, **_: str(tmp_path / repo_id / filename))
    model = sb3_contrib.RecurrentPPO.load(hub.load_from_hub("shared", "model.zip"))
    assert equal(model.policy, load_policy(run))
