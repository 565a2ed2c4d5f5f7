"""What a person sees while a verb works, and the models that a run keeps on the way."""

import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

import numpy as np
from omegaconf import DictConfig, OmegaConf
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import HParam, TensorBoardOutputFormat
from tqdm import tqdm

from rmc_rl.agents import parallel
from rmc_rl.envs.base import Returns
from rmc_rl.runs.folder import Run, save_model

EPISODES_FOR_BEST = 100  # SB3 averages ep_rew_mean over as many
# keys that do not decide what is learned
NO_HYPERPARAMETERS = ("runs_dir", "name", "resume", "checkpoint_every", "keep_checkpoints", "memory_picture_every")
PLAYERS = {"random": "random play", "memoryless": "without memory", "perfect": "perfect play"}  # fields of Returns
REFRESH_SECONDS = 0.2  # of a progress bar in a terminal
REFRESH_SECONDS_IN_FILE = 30.0  # each refresh writes a line there

# what a verb tells of a job of a sweep, beside its exit status: "result" in a few words, "run" (a folder), "error",
# "evaluations" (files), "cpu_seconds"
told: dict[str, Any] = {}
_bar_options: dict[str, Any] = {}  # of progress bars in a job of a sweep


def say(text: str = "") -> None:
    """
    Print for the person at the terminal; does nothing if the terminal was closed. Of several processes the first one prints.

    :param text: one line or several
    """
    with suppress(OSError):
        if parallel.is_first():
            print(text, flush=True)


def progress_bar(total: int | None, unit: str, initial: int = 0) -> "tqdm[Any]":
    """
    A progress bar on standard error.

    :param total: units until the end; None: it is not known
    :param unit: what is counted, as in "steps"
    :param initial: units that were done before
    """
    interval = REFRESH_SECONDS if sys.stderr.isatty() or _bar_options else REFRESH_SECONDS_IN_FILE
    return tqdm(total=total, initial=initial, unit=f" {unit}", mininterval=interval, dynamic_ncols=True, **_bar_options)


@contextmanager
def bar_in_sweep(terminal: TextIO | None, label: str) -> Iterator[None]:
    """
    Show the progress bars of a job on the terminal while its other output goes elsewhere, and remove them afterwards.

    :param terminal: None: the job has no terminal of its own, and shows no bars
    :param label: of the job, shown before the bar
    """
    _bar_options.update(disable=True) if terminal is None else _bar_options.update(file=terminal, desc=label, leave=False)
    try:
        yield
    finally:
        _bar_options.clear()


class RunCallback(BaseCallback):
    """
    Shows a progress bar with the episode return and saves the best model into the run's folder.

    Until there is an evaluation, or without evaluations until there are enough episodes, the latest policy is the best.

    :param run: the run
    :param config: its configuration, which goes to TensorBoard as text and as hyperparameters
    :param last_evaluation: the mean return of the last evaluation, None if there was none yet; without evaluations training
        returns decide which model is the best
    """

    def __init__(self, run: Run, config: DictConfig, last_evaluation: Callable[[], float | None] | None = None):
        super().__init__()
        self.run, self.config, self.last_evaluation = run, config, last_evaluation
        self.best = -np.inf
        self.bar: tqdm[Any] | None = None

    def _on_training_start(self) -> None:
        for output in self.logger.output_formats:
            if isinstance(output, TensorBoardOutputFormat) and self.model.num_timesteps == 0:
                output.writer.add_text("config", f"```yaml\n{OmegaConf.to_yaml(self.config)}\n```")
                metrics = ["rollout/ep_rew_mean", *(["eval/mean_reward"] if self.last_evaluation is not None else [])]
                value = HParam(hyperparameters(self.config), dict.fromkeys(metrics, 0.0))
                output.write({"hparams": value}, {"hparams": ()})
        rollout = self.config.n_envs * self.config.algo.n_steps
        total = -(-self.config.total_timesteps // rollout) * rollout  # the last rollout is played to its end
        self.bar = progress_bar(total, "steps", self.model.num_timesteps)

    def _on_step(self) -> bool:
        if self.bar is not None:
            self.bar.update(self.training_env.num_envs * parallel.size())
        return True

    def _on_rollout_end(self) -> None:
        returns = episode_returns(self.model)
        mean = float(np.mean(returns)) if returns else None
        evaluation = None if self.last_evaluation is None else self.last_evaluation()
        shown = {"return": mean, "evaluation": evaluation}
        if self.bar is not None:
            text = {name: f"{value:.3g}" for name, value in shown.items() if value is not None}
            self.bar.set_postfix(text, refresh=False)
        if self.last_evaluation is not None:
            if evaluation is None:
                self.save_best()
        # the mean of a few episodes is a poor estimate
        elif mean is not None and (len(returns) < EPISODES_FOR_BEST or mean > self.best):
            self.best = mean
            self.save_best()

    def save_best(self) -> None:
        """Save the present policy as the best one."""
        self.run.model_path("best").parent.mkdir(exist_ok=True)
        save_model(self.model, self.run.model_path("best"))

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: the mean return of the best model."""
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Go on from a checkpoint.

        :param state: what :meth:`state_dict` returned
        """
        self.best = float(state["best"])

    def close(self) -> None:
        """Stop the bar; what it shows stays on the screen."""
        if self.bar is not None:
            with suppress(OSError):  # the terminal was closed
                self.bar.close()


def in_words(reference: Returns) -> str:
    """
    The known ones of a world's reference returns; empty if none is known.

    :param reference: mean returns of some players
    """
    return ", ".join(f"{PLAYERS[name]} {value:.3g}" for name, value in reference._asdict().items() if value is not None)


def hyperparameters(config: DictConfig) -> dict[str, bool | str | float]:
    """
    The settings of a run as TensorBoard's table of hyperparameters takes them: one value for each dotted key.

    :param config: of the run
    """
    found: dict[str, bool | str | float] = {}

    def add(node: Any, prefix: str) -> None:
        for key, value in node.items():
            name = f"{prefix}{key}"
            if isinstance(value, dict):
                add(value, f"{name}.")
            elif value is not None and name not in NO_HYPERPARAMETERS:
                found[name] = value if isinstance(value, bool | int | float) else str(value)

    add(OmegaConf.to_container(config, resolve=True), "")
    return found


def episode_returns(model: BaseAlgorithm) -> list[float]:
    """
    The returns of the last training episodes.

    :param model: the agent
    :return: at most ``EPISODES_FOR_BEST`` of them, the last one last
    """
    infos: deque[dict[str, Any]] = model.ep_info_buffer or deque()
    return [info["r"] for info in infos]
