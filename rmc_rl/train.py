"""
Train an agent with a memory by recurrent PPO: python -m rmc_rl.train key=value ...

  python -m rmc_rl.train env_kwargs.n_symbols=4 env_kwargs.length=3 env_kwargs.delay=5   a small copy task, minutes
  python -m rmc_rl.train env=ALE/Pong-v5 core=rmc core.num_slots=8                       Atari
  python -m rmc_rl.train env=CartPole-v1 core=memoryless total_timesteps=50000           any Gymnasium id
  python -m rmc_rl.train -m seed=0,1,2 core=rmc,lstm,memoryless params=50000             a sweep over cores of the same size

A run lies in runs/<env>/<core>/<stamp>-seed<k>: config.yaml, model.zip, best/model.zip, checkpoints/, TensorBoard's
events and progress.csv. Ctrl-C saves the model and ends with status 130. A mistake on the command line ends with 2.
"""

import math
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
    RecurrentPPO,
    match_parameters,
)
from rmc_rl.cli import find_device, keep_freed_memory, run_verb, say
from rmc_rl.envs import make_vec
from rmc_rl.envs.vec import env_family
from rmc_rl.errors import UsageError, require
from rmc_rl.runs import Run, save_model

EPISODES_FOR_BEST = 100  # as many as SB3 averages its ep_rew_mean over
SMALLEST_CNN_IMAGE = 36  # pixels, of height and width: what the three convolutions of a NatureCNN need


# what config.algo.name may be
ALGORITHMS: dict[str, type[sb3_contrib.RecurrentPPO]] = {"ppo": RecurrentPPO, "stock": sb3_contrib.RecurrentPPO}
SCHEDULES = ("constant", "linear")

Rule = tuple[Callable[[Any], bool], str]  # whether a value is valid, and how to say what is


def _whole(least: int) -> Rule:
    return lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= least, f"a whole number of at least {least}"


def _number(low: float, high: float = np.inf, open_low: bool = False) -> Rule:
    def valid(value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return math.isfinite(value) and (value > low if open_low else value >= low) and value <= high

    rule = "a number " + ("above" if open_low else "of at least") + f" {low:g}"
    return valid, rule if high == np.inf else f"{rule} and at most {high:g}"


def _or_null(rule: Rule) -> Rule:
    return lambda v: v is None or rule[0](v), f"{rule[1]}, or null"


_TRUTH: Rule = (lambda v: isinstance(v, bool), "true or false")


def _is_layers(value: Any) -> bool:
    return value is None or (OmegaConf.is_list(value) and all(_whole(1)[0](item) for item in value))


def _is_net_arch(value: Any) -> bool:
    if OmegaConf.is_dict(value):
        return set(value) <= {"pi", "vf"} and all(OmegaConf.is_list(item) and _is_net_arch(item) for item in value.values())
    return _is_layers(value)


# key -> what its value must be; keys of the core and of the environment are checked by these themselves
RULES: dict[str, Rule] = {
    "core.name": (lambda v: isinstance(v, str), "the name of a core"),
    "runs_dir": (lambda v: isinstance(v, str) and v != "", "a folder"),
    "n_envs": _whole(1),
    "processes": _TRUTH,
    "num_threads": _or_null(_whole(1)),
    "total_timesteps": _whole(1),
    "params": _or_null(_whole(1)),
    "seed": _whole(0),
    "checkpoint_every": _or_null(_whole(1)),
    "policy.encoder": (_is_layers, "null or sizes of layers, as in [64]"),
    "policy.channels_last": _TRUTH,
    "policy.amp": (lambda v: v in (None, "bf16"), "bf16 or null"),
    "policy.net_arch": (_is_net_arch, "null, sizes of layers as [64, 64], or {pi: [64], vf: [64]}"),
    "policy.ortho_init": _TRUTH,
    "policy.log_std_init": _number(-np.inf),
    "policy.previous_action_reward": _TRUTH,
    "algo.name": (lambda v: v in ALGORITHMS, " or ".join(ALGORITHMS)),
    "algo.learning_rate": _number(0, open_low=True),
    "algo.learning_rate_schedule": (lambda v: v in SCHEDULES, " or ".join(SCHEDULES)),
    "algo.sequence_length": _or_null(_whole(1)),
    "algo.n_steps": _whole(1),
    "algo.batch_size": _whole(2),
    "algo.n_epochs": _whole(1),
    "algo.gamma": _number(0, 1),
    "algo.gae_lambda": _number(0, 1),
    "algo.clip_range": _number(0, open_low=True),
    "algo.clip_range_vf": _or_null(_number(0, open_low=True)),
    "algo.normalize_advantage": _TRUTH,
    "algo.ent_coef": _number(0),
    "algo.vf_coef": _number(0),
    "algo.max_grad_norm": _number(0, open_low=True),
    "algo.use_sde": _TRUTH,
    "algo.sde_sample_freq": _whole(-1),
    "algo.target_kl": _or_null(_number(0, open_low=True)),
}


def check_config(config: DictConfig) -> None:
    """
    Check every value that neither the core nor the environment checks.

    :param config: resolved
    :raises UsageError: for the first value that breaks its rule
    """
    for node in ("algo", "policy", "core", "env_kwargs"):
        require(OmegaConf.is_dict(config[node]), f"{node} must hold keys, as in {node}.key=value", config[node])
    for key, (valid, rule) in RULES.items():
        value = OmegaConf.select(config, key)  # None where the algorithm has no such key
        require(valid(value), f"{key} must be {rule}", value)
    transitions = config.n_envs * config.algo.n_steps
    require(transitions >= 2, "n_envs * algo.n_steps must be at least 2", transitions)
    if transitions % config.algo.batch_size:
        divisors = [size for size in range(2, transitions + 1) if transitions % size == 0]
        near = sorted(sorted(divisors, key=lambda size: abs(size - config.algo.batch_size))[:4])
        raise UsageError(
            f"algo.batch_size must divide the {transitions} transitions of a rollout (n_envs {config.n_envs} * "
            f"algo.n_steps {config.algo.n_steps}), got {config.algo.batch_size}; near it: {', '.join(map(str, near))}"
        )


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
