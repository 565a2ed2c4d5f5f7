"""
Train an agent with a memory by recurrent PPO: python -m rmc_rl.train key=value ...

  python -m rmc_rl.train env_kwargs.n_symbols=4 env_kwargs.length=3 env_kwargs.delay=5   a small copy task, minutes
  python -m rmc_rl.train env=ALE/Pong-v5 core=rmc core.num_slots=8                       Atari
  python -m rmc_rl.train env=CartPole-v1 core=memoryless total_timesteps=50000           any Gymnasium id
  python -m rmc_rl.train -m seed=0,1,2 core=rmc,lstm,memoryless params=50000             a sweep over cores of the same size

A run lies in runs/<env>/<core>/<stamp>-seed<k>: config.yaml, model.zip, best/model.zip, checkpoints/, TensorBoard's
events and progress.csv. Ctrl-C saves the model and ends with status 130. A mistake on the command line ends with 2.
"""

import shlex
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

import numpy as np
import sb3_contrib
import torch
from gymnasium import spaces
from omegaconf import DictConfig, OmegaConf, open_dict
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import TensorBoardOutputFormat, configure
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.utils import LinearSchedule
from tqdm import tqdm

from rmc_rl.agents import (
    CnnMemoryPolicy,
    CoreScalars,
    MlpMemoryPolicy,
    MultiInputMemoryPolicy,
    match_parameters,
)
from rmc_rl.agents.cores import core_class
from rmc_rl.agents.cores.kernels.dispatch import report
from rmc_rl.command_line.app import find_device, keep_freed_memory, run_verb, say
from rmc_rl.command_line.schema import ALGORITHMS, check_config
from rmc_rl.envs import make_vec
from rmc_rl.envs.make_vec import env_family
from rmc_rl.errors import require
from rmc_rl.runs.folder import Run, save_model

EPISODES_FOR_BEST = 100  # as many as SB3 averages its ep_rew_mean over
SMALLEST_CNN_IMAGE = 36  # pixels, of height and width: what the three convolutions of a NatureCNN need


def make_model(config: DictConfig) -> sb3_contrib.RecurrentPPO:
    """
    The agent and its environment.

    :param config: resolved; with ``params`` the sizes that follow for the core are written into it
    :raises UsageError: for a mistake in the configuration
    """
    check_config(config)
    device = find_device(config.device)
    env_kwargs = {str(key): value for key, value in _plain(config.env_kwargs).items()}
    policy_arguments = _plain(config.policy)
    env = make_vec(
        config.env,
        config.n_envs,
        seed=config.seed,
        env_kwargs=env_kwargs,
        processes=config.processes,
        device=find_device(config.env_device, "env_device"),
        previous_action_reward=policy_arguments.pop("previous_action_reward"),
    )
    actions = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
    checks = (("action", env.action_space, actions), ("observation", env.observation_space, (*actions, spaces.Dict)))
    for kind, space, known in checks:
        names = ", ".join(each.__name__ for each in known)
        require(isinstance(space, known), f"the {kind} space of env must be one of {names}", space)
    if config.algo.use_sde:
        require(isinstance(env.action_space, spaces.Box), "algo.use_sde needs Box actions", env.action_space)
    core_kwargs = _plain(config.core)
    core = core_kwargs.pop("name")
    policy = choose_policy(env.observation_space)
    policy_kwargs = dict(core=core, core_kwargs=core_kwargs, **policy_arguments)
    algo = _plain(config.algo)
    algorithm = ALGORITHMS[algo.pop("name")]
    if config.algo.name == "stock":
        algo.pop("sequence_length", None)
    if algo.pop("learning_rate_schedule") == "linear":
        algo["learning_rate"] = LinearSchedule(algo["learning_rate"], 0.0, 1.0)

    def make(policy_kwargs: dict[str, Any]) -> sb3_contrib.RecurrentPPO:
        return algorithm(
            policy,
            env,
            seed=config.seed,
            device=device,
            policy_kwargs=policy_kwargs,
            stats_window_size=EPISODES_FOR_BEST,
            **algo,
        )

    model = make(policy_kwargs)
    if config.params is None:
        return model
    # the spaces as the policy sees them: SB3 moves the channels of images first
    matched = match_parameters(policy, model.observation_space, model.action_space, policy_kwargs, config.params)
    with open_dict(config.core):  # a core of one's own may leave the sizes out of its YAML
        config.core.update(matched["core_kwargs"])
    return make(matched)


def choose_policy(space: spaces.Space[Any]) -> type[MlpMemoryPolicy]:
    """
    The policy for an observation space.

    :param space: the space; images may have their channels first or last
    :return: ``MultiInputMemoryPolicy`` for ``Dict``, ``CnnMemoryPolicy`` for images that are large enough for its
        convolutions, ``MlpMemoryPolicy`` for everything else, small images included
    """
    if isinstance(space, spaces.Dict):
        return MultiInputMemoryPolicy
    if is_image_space(space):
        assert space.shape is not None
        if sorted(space.shape)[1] >= SMALLEST_CNN_IMAGE:  # channels are the smallest dimension
            return CnnMemoryPolicy
    return MlpMemoryPolicy


def parameter_counts(model: BaseAlgorithm) -> dict[str, int]:
    """
    How many trainable numbers each part of a policy has.

    :param model: the agent
    :return: name of the part -> count; parts without any are left out
    """
    counts: dict[str, int] = {}
    for name, parameter in model.policy.named_parameters():
        part = name.split(".")[0]
        counts[part] = counts.get(part, 0) + parameter.numel()
    return counts


class RunCallback(BaseCallback):
    """
    Shows a progress bar with the episode return and saves models into the run's folder.

    :param run: the run
    :param config: its configuration, which goes to TensorBoard as text
    :param at_step: called after each step of the environment
    """

    def __init__(self, run: Run, config: DictConfig, at_step: Callable[[], None]):
        super().__init__()
        self.at_step = at_step
        self.run, self.config = run, config
        self.best = -np.inf
        self.next_checkpoint = config.checkpoint_every or np.inf
        self.bar: tqdm[Any] | None = None

    def _on_training_start(self) -> None:
        for output in self.logger.output_formats:
            if isinstance(output, TensorBoardOutputFormat):
                output.writer.add_text("config", f"```yaml\n{OmegaConf.to_yaml(self.config)}\n```")
        # into a file the bar would write a line at each refresh: once in a while is enough there
        interval = 0.2 if sys.stderr.isatty() else 30
        rollout = self.config.n_envs * self.config.algo.n_steps
        total = -(-self.config.total_timesteps // rollout) * rollout  # the last rollout is played to its end
        self.bar = tqdm(total=total, unit=" steps", mininterval=interval, dynamic_ncols=True)

    def _on_step(self) -> bool:
        self.at_step()
        if self.bar is not None:
            self.bar.update(self.training_env.num_envs)
        return True

    def _on_rollout_end(self) -> None:
        returns = episode_returns(self.model)
        if returns:
            mean = float(np.mean(returns))
            if self.bar is not None:
                self.bar.set_postfix({"return": f"{mean:.3g}"}, refresh=False)
            # few episodes say little: until there are enough, the latest policy counts as the best
            if len(returns) < EPISODES_FOR_BEST or mean > self.best:
                self.best = mean
                save_model(self.model, self.run.model_path("best"))
        if self.num_timesteps >= self.next_checkpoint:
            save_model(self.model, self.run.checkpoint_path(self.num_timesteps))
            self.next_checkpoint += self.config.checkpoint_every

    def close(self) -> None:
        """Leave the bar as it is."""
        if self.bar is not None:
            self.bar.close()


def episode_returns(model: BaseAlgorithm) -> list[float]:
    """
    The returns of the last training episodes.

    :param model: the agent
    :return: at most ``EPISODES_FOR_BEST`` of them, the last one last
    """
    infos: deque[dict[str, Any]] = model.ep_info_buffer or deque()
    return [info["r"] for info in infos]


class Stopped(Exception):
    """The user, or the system, asked training to stop."""


class StopSignals:
    """
    SIGINT (Ctrl-C) and SIGTERM, from entering to leaving a ``with`` block.

    The first one is kept until :meth:`check` is called, at a moment when stopping harms nothing; a second one does not
    wait for that. In a thread that is not the main one, where Python lets nobody set signal handlers, nothing happens.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for name in (signal.SIGINT, signal.SIGTERM):
                self._before[name] = signal.signal(name, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        self._set(self._before)

    def check(self, *_: object) -> None:
        """
        Stop here if asked to.

        :raises Stopped: after a signal
        """
        if self.received is not None:
            raise Stopped(signal.Signals(self.received).name)

    def ignore(self) -> None:
        """Ignore further signals, for work that must not be stopped."""
        self._set(dict.fromkeys(self._before, signal.SIG_IGN))

    def _receive(self, signum: int, _frame: FrameType | None) -> None:
        again, self.received = self.received is not None, signum
        if again:
            self.ignore()
            self.check()

    @staticmethod
    def _set(handlers: dict[signal.Signals, Any]) -> None:
        for name, handler in handlers.items():
            signal.signal(name, handler)


def train(config: DictConfig) -> int:
    """
    Train an agent as the configuration says.

    :param config: resolved; see ``configs/train.yaml``
    :return: exit status: 0, or 128 and the number of the signal that stopped the training
    :raises UsageError: for a mistake in the configuration, before anything is written
    """
    for key in ("total_timesteps", "checkpoint_every", "params"):  # people write 1e6
        if isinstance(config[key], float) and config[key].is_integer():
            config[key] = int(config[key])
    keep_freed_memory()
    model = make_model(config)
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    run = Run.create(config.runs_dir, config.env, config.core.name, config.seed)
    run.write_config(config)
    counts = parameter_counts(model)
    say(OmegaConf.to_yaml(config).rstrip())
    say(f"parameters: {sum(counts.values()):,} ({', '.join(f'{name} {count:,}' for name, count in counts.items())})")
    say(f"device: {model.device}")
    if config.core.get("kernel") is not None:
        say(f"kernel: {report(config.core.kernel, core_class(config.core.name).kernel_family, model.device.type)}")
    say(f"run: {run.path}")

    model.set_logger(configure(str(run.path), ["csv", "tensorboard"]))
    status = 0
    with StopSignals() as signals:
        callback = RunCallback(run, config, signals.check)
        model.policy.optimizer.register_step_post_hook(signals.check)
        try:
            model.learn(config.total_timesteps, callback=[callback, CoreScalars()])
        except Exception:
            if signals.received is None:
                raise
            # Stopped, or what followed from a Ctrl-C that worker processes got as well
            status = 128 + signals.received
            callback.close()
            say(f"stopped by {signal.Signals(signals.received).name} after {model.num_timesteps:,} steps")
        finally:  # after a crash as well
            signals.ignore()  # a Ctrl-C from here on must not lose the model
            callback.close()
            save_model(model, run.model_path("last"))
            model.logger.close()
            with suppress(OSError, EOFError):  # worker processes may have been stopped by the same signal
                model.get_env().close()  # type: ignore[union-attr]
    returns = episode_returns(model)
    if returns:
        say(f"return: {np.mean(returns):.3f}, mean of the last {len(returns)} training episodes")
    say(f"model: {run.model_path('last')}")
    say(f"next: python -m rmc_rl.evaluate {shlex.quote(f'run={run.path}')}")
    return status


def _plain(node: DictConfig) -> dict[str, Any]:
    """A node of the configuration as plain dictionaries and lists, which models are saved with."""
    return dict(OmegaConf.to_container(node, resolve=True))  # type: ignore[arg-type]


def main() -> None:
    """The command line."""
    run_verb(train, "train", __doc__ or "", env_family)


if __name__ == "__main__":
    main()
