"""What a person sees while a verb works, and the models that a run keeps on the way."""

import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

import numpy as np
from omegaconf import DictConfig, OmegaConf
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import TensorBoardOutputFormat
from tqdm import tqdm

from rmc_rl.runs.folder import Run, save_model

EPISODES_FOR_BEST = 100  # SB3 averages ep_rew_mean over as many
REFRESH_SECONDS = 0.2  # of a progress bar in a terminal
REFRESH_SECONDS_IN_FILE = 30.0  # each refresh writes a line there

# what a verb tells of a job of a sweep, beside its exit status: "result" in a few words, "run" (a folder), "error",
# "evaluations" (files), "cpu_seconds"
told: dict[str, Any] = {}
_bar_options: dict[str, Any] = {}  # of progress bars in a job of a sweep


def say(text: str = "") -> None:
    """
    Print for the person at the terminal; does nothing if the terminal was closed.

    :param text: one line or several
    """
    with suppress(OSError):
        print(text, flush=True)


def progress_bar(total: int, unit: str, initial: int = 0) -> "tqdm[Any]":
    """
    A progress bar on standard error.

    :param total: units until the end
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
    Shows a progress bar with the episode return and saves models into the run's folder.

    :param run: the run
    :param config: its configuration, which goes to TensorBoard as text
    """

    def __init__(self, run: Run, config: DictConfig):
        super().__init__()
        self.run, self.config = run, config
        self.best = -np.inf
        self.bar: tqdm[Any] | None = None

    def _on_training_start(self) -> None:
        for output in self.logger.output_formats:
            if isinstance(output, TensorBoardOutputFormat) and self.model.num_timesteps == 0:
                output.writer.add_text("config", f"```yaml\n{OmegaConf.to_yaml(self.config)}\n```")
        rollout = self.config.n_envs * self.config.algo.n_steps
        total = -(-self.config.total_timesteps // rollout) * rollout  # the last rollout is played to its end
        self.bar = progress_bar(total, "steps", self.model.num_timesteps)

    def _on_step(self) -> bool:
        if self.bar is not None:
            self.bar.update(self.training_env.num_envs)
        return True

    def _on_rollout_end(self) -> None:
        returns = episode_returns(self.model)
        if returns:
            mean = float(np.mean(returns))
            if self.bar is not None:
                self.bar.set_postfix({"return": f"{mean:.3g}"}, refresh=False)
            # The mean of a few episodes is a poor estimate: until there are enough, the latest policy counts as the best.
            if len(returns) < EPISODES_FOR_BEST or mean > self.best:
                self.best = mean
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


def episode_returns(model: BaseAlgorithm) -> list[float]:
    """
    The returns of the last training episodes.

    :param model: the agent
    :return: at most ``EPISODES_FOR_BEST`` of them, the last one last
    """
    infos: deque[dict[str, Any]] = model.ep_info_buffer or deque()
    return [info["r"] for info in infos]
