"""
Train an agent with a memory by recurrent PPO: python -m rmc_rl.train key=value ...

  python -m rmc_rl.train env_kwargs.n_symbols=4 env_kwargs.length=3 env_kwargs.delay=5   a small copy task, minutes
  python -m rmc_rl.train env=ALE/Pong-v5 core=rmc core.num_slots=8                       Atari
  python -m rmc_rl.train env=CartPole-v1 core=memoryless total_timesteps=50000           any Gymnasium id
  python -m rmc_rl.train env=my_module:MyEnv-v0 core=my_module:my_core                   your own
  python -m rmc_rl.train -m seed=0,1,2 core=rmc,lstm,memoryless params=50000             a sweep over cores of the same size

  python -m rmc_rl.train curriculum.delay=[5,50]                                         a keyword that rises with the return
  python -m rmc_rl.train env=CartPole-v1 partial.hide=[1,3]                              without parts of the observation

  python -m rmc_rl.train resume=<folder of a run>                                        go on with a run that was stopped
  python -m rmc_rl.train name=first resume=auto                                          start the run called first, or go on
  python -m rmc_rl.train init=<folder of a run> env_kwargs.delay=50                      a new run from the weights of another

The run's folder is runs/<env>/<core>/<stamp>-seed<k>. It holds config.yaml, model.zip, best/model.zip, checkpoints/,
TensorBoard's events and progress.csv. Ctrl-C (status 130), SIGTERM (143), SIGHUP (129) and SIGUSR1 (138) end the run after
the present update, with a checkpoint; a second one ends it at once. A mistake on the command line gets one line and status 2,
a number that is not finite one line and status 3, a disk that is full or a worker process that died one line and status 1.
"""

import shlex
import time
from contextlib import suppress

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from stable_baselines3.common.base_class import BaseAlgorithm

from rmc_rl.agents import CoreScalars
from rmc_rl.agents.cores import core_class
from rmc_rl.agents.cores.kernels.dispatch import report
from rmc_rl.command_line.advice import EntropyWarning, memory_demand, warn_about_memory
from rmc_rl.command_line.agent import make_env, make_model, parameter_counts, plain
from rmc_rl.command_line.app import FAILED, NOT_FINITE, how_to_run, run_verb, tell
from rmc_rl.command_line.curriculum import Curriculum, set_last_values
from rmc_rl.command_line.devices import check_threads, keep_freed_memory
from rmc_rl.command_line.progress import RunCallback, episode_returns, say
from rmc_rl.command_line.resuming import find_run, given_keys, initial_model, say_what_changes
from rmc_rl.command_line.schema import TrainKeys
from rmc_rl.command_line.signals import Stopped, StopSignals
from rmc_rl.envs.make_vec import env_family
from rmc_rl.errors import NonFiniteError
from rmc_rl.runs.checkpoint import Checkpoints, find_checkpoints
from rmc_rl.runs.curves import make_logger
from rmc_rl.runs.folder import Run, save_model
from rmc_rl.runs.loading import load_weights


def train(config: DictConfig, command: str | None = None) -> int:
    """
    Train an agent as the configuration says, or go on with a run.

    :param config: checked; see ``configs/train.yaml``
    :param command: the command line that repeats the run; None: it was started from Python
    :return: exit status: 0; 1 if training failed; 3 if a number was not finite; 128 and the number of the signal that
        stopped it
    :raises UsageError: for a mistake in the configuration, before anything is written
    """
    old_run, config = find_run(config, [] if command is None else given_keys())
    initial = None if config.init is None or old_run is not None else initial_model(config.init)
    if old_run is None:
        set_last_values(config)
    check_threads(config.num_threads)
    keep_freed_memory()
    model = make_model(config, make_env(config))
    if initial is not None:
        load_weights(initial, model)
    demand = memory_demand(model)
    curriculum = Curriculum(plain(config.curriculum), model, config.curriculum_return)
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    run = old_run or Run.create(config.runs_dir, config.env, config.core.name, config.seed, config.name)
    callback, signals = RunCallback(run, config), StopSignals()
    checkpoints = Checkpoints(
        run.checkpoints_path,
        config.checkpoint_every,
        config.keep_checkpoints,
        callbacks={"best": callback, "curriculum": curriculum} if config.curriculum else {"best": callback},
        should_stop=signals.should_stop,
        after_save=lambda: save_model(model, run.model_path("last")),
    )
    # a run that was stopped before its first checkpoint starts again: its seed gives the same numbers
    found = find_checkpoints(run.checkpoints_path) if old_run is not None else []
    if found:
        checkpoints.resume(model, found[0])
        say_what_changes(run, config, model.num_timesteps)
    first_step = model.num_timesteps
    remaining = config.total_timesteps - first_step
    if old_run is None or config.total_timesteps != run.read_config().total_timesteps:
        run.write_config(config, command)
    _say_what_runs(run, config, model)
    warn_about_memory(model, demand)
    if remaining <= 0:
        say(f"the run has taken its {model.num_timesteps:,} steps; total_timesteps=... goes on for longer")
        return 0

    started = time.monotonic()
    model.set_logger(make_logger(run.path, first_step if old_run is not None else None))
    status, again = 0, f"to go on: {how_to_run('train')} {shlex.quote(f'resume={run.path}')}"
    with signals:
        try:
            present = [checkpoints, callback, curriculum, CoreScalars(), EntropyWarning()]
            model.learn(remaining, callback=present, reset_num_timesteps=not found)
        except NonFiniteError as error:
            status = tell(error, NOT_FINITE)
        except Stopped:  # by a second signal
            pass
        except Exception as error:
            say(f"training failed after {model.num_timesteps:,} steps; {again}")
            if not isinstance(error, OSError | EOFError):
                raise
            died = config.processes and isinstance(error, EOFError | ConnectionError)
            status = tell(OSError("a process of the environment has died") if died else error, FAILED)
        finally:  # after a crash as well
            signals.ignore()  # a Ctrl-C from here on must not lose the model
            callback.close()
            with suppress(OSError):  # the disk may be full, and worker processes may have died
                _save_if_finite(model, run)
                model.logger.close()
            with suppress(OSError, EOFError):
                model.get_env().close()  # type: ignore[union-attr]
    if signals.received is not None and model.num_timesteps < config.total_timesteps:
        status = 128 + signals.received
        say(f"stopped by {signals.name} after {model.num_timesteps:,} steps; {again}")
    seconds = time.monotonic() - started
    say(f"time: {seconds:,.1f} seconds, {(model.num_timesteps - first_step) / seconds:,.0f} steps per second")
    returns = episode_returns(model)
    if returns:
        say(f"return: {np.mean(returns):.3f}, mean of the last {len(returns)} training episodes")
    say(f"model: {run.model_path('last')}")
    say(f"next: {how_to_run('evaluate')} {shlex.quote(f'run={run.path}')}")
    return status


def _say_what_runs(run: Run, config: DictConfig, model: BaseAlgorithm) -> None:
    counts = parameter_counts(model)
    say(OmegaConf.to_yaml(config).rstrip())
    say(f"parameters: {sum(counts.values()):,} ({', '.join(f'{name} {count:,}' for name, count in counts.items())})")
    say(f"device: {model.device}")
    if config.core.get("kernel") is not None:
        say(f"kernel: {report(config.core.kernel, core_class(config.core.name).kernel_family, model.device.type)}")
    say(f"run: {run.path}" + (f" (goes on at {model.num_timesteps:,} steps)" if model.num_timesteps else ""))


def _save_if_finite(model: BaseAlgorithm, run: Run) -> None:
    """Save the last model, but not over a better one if it holds a number that is not finite."""
    if all(bool(torch.isfinite(parameter).all()) for parameter in model.policy.parameters()):
        save_model(model, run.model_path("last"))


def main() -> None:
    """The command line."""
    run_verb(train, "train", __doc__ or "", TrainKeys, env_family)


if __name__ == "__main__":
    main()
