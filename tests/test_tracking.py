"""The page on W&B and MLflow: its modules on the command line, offline."""

import re
from pathlib import Path

import pytest
from tiny_runs import TINY

from rmc_rl import train

PAGE = Path(__file__).parent.parent / "docs" / "tracking.md"
RUN = [*TINY, "core=memoryless", "total_timesteps=300"]


@pytest.fixture(name="write")
def write_modules_of_the_page(monkeypatch, tmp_path):
    """Write a module of the page into the working directory, which no longer has it in ``sys.modules`` afterwards."""

    def write(name):
        (text,) = re.findall(rf"```python\n(# {name}.py\n.*?)```", PAGE.read_text(), re.DOTALL)
        (tmp_path / f"{name}.py").write_text(text)

    monkeypatch.syspath_prepend(str(tmp_path))
    return write


def test_wandb_gets_what_tensorboard_gets(call, write, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    write("wandb_tracking")
    status, _, err = call(train, *RUN, "callbacks=[{name: wandb_tracking:Track, project: memory}]")
    run = wandb.run
    assert (status, run is not None) == (0, True), err
    config = dict(run.config)
    wandb.finish()
    assert (config["algo"], run.project) == ("RecurrentPPO", "memory")
    (sent,) = Path("wandb").glob("offline-run-*/*.wandb")
    for name in (b"global_step", b"rollout/ep_rew_mean", b"train/value_loss"):
        assert name in sent.read_bytes(), name


def test_mlflow_gets_every_number_of_the_logger(call, write, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    write("mlflow_tracking")
    status, _, err = call(train, *RUN, "callbacks=[{name: mlflow_tracking:Track, run_name: first}]")
    assert status == 0, err
    (run,) = mlflow.search_runs(experiment_names=["rmc-rl"], output_format="list")
    assert (run.info.status, run.info.run_name, run.data.params["algo"]) == ("FINISHED", "first", "RecurrentPPO")
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "train/value_loss")
    assert [point.step for point in history] == [176, 264, 352]  # SB3 writes the losses of an update with the next rollout
    assert "rollout/ep_rew_mean" in run.data.metrics
