"""
Train an agent with a memory by recurrent PPO: python -m rmc_rl.train key=value ...

  python -m rmc_rl.train env_kwargs.n_symbols=4 env_kwargs.length=3 env_kwargs.delay=5   a small copy task, minutes
  python -m rmc_rl.train env=ALE/Pong-v5 core=rmc core.num_slots=8                       Atari
  python -m rmc_rl.train env=CartPole-v1 core=memoryless total_timesteps=50000           any Gymnasium id
  python -m rmc_rl.train env=my_module:MyEnv-v0 core=my_module:my_core                   your own
  python -m rmc_rl.train -m seed=0,1,2 core=rmc,lstm,memoryless params=50000             a sweep over cores of the same size

The run's folder is runs/<env>/<core>/<stamp>-seed<k>. It holds config.yaml, model.zip, best/model.zip, checkpoints/,
TensorBoard's events and progress.csv. Ctrl-C (status 130), SIGTERM (143), SIGHUP (129) and SIGUSR1 (138) save the model
and end the run. A mistake on the command line gets one line and status 2, a number
that is not finite one line and status 3.
"""

import shlex
import time
from contextlib import suppress

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from stable_baselines3.common.logger import configure

from rmc_rl.agents import CoreScalars
from rmc_rl.agents.cores import core_class
from rmc_rl.agents.cores.kernels.dispatch import report
from rmc_rl.command_line.agent import make_env, make_model, parameter_counts
from rmc_rl.command_line.app import NOT_FINITE, how_to_run, run_verb, tell
from rmc_rl.command_line.devices import check_threads, keep_freed_memory
from rmc_rl.command_line.progress import RunCallback, episode_returns, say
from rmc_rl.command_line.schema import TrainKeys
from rmc_rl.command_line.signals import StopSignals
from rmc_rl.envs.make_vec import env_family
from rmc_rl.errors import NonFiniteError
from rmc_rl.runs.folder import Run, save_model


def train(config: DictConfig, command: str | None = None) -> int:
    """
    Train an agent as the configuration says.

    :param config: checked; see ``configs/train.yaml``
    :param command: the command line that repeats the run; None: it was started from Python
    :return: exit status: 0; 3 if a number was not finite; 128 and the number of the signal that stopped the training
    :raises UsageError: for a mistake in the configuration, before anything is written
    """
    check_threads(config.num_threads)
    keep_freed_memory()
    model = make_model(config, make_env(config))
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    run = Run.create(config.runs_dir, config.env, config.core.name, config.seed)
    run.write_config(config, command)
    counts = parameter_counts(model)
    say(OmegaConf.to_yaml(config).rstrip())
    say(f"parameters: {sum(counts.values()):,} ({', '.join(f'{name} {count:,}' for name, count in counts.items())})")
    say(f"device: {model.device}")
    if config.core.get("kernel") is not None:
        say(f"kernel: {report(config.core.kernel, core_class(config.core.name).kernel_family, model.device.type)}")
    say(f"run: {run.path}")

    model.set_logger(configure(str(run.path), ["csv", "tensorboard"]))
    started, status = time.monotonic(), 0
    with StopSignals() as signals:
        callback = RunCallback(run, config, signals.check)
        model.policy.optimizer.register_step_post_hook(signals.check)
        try:
            model.learn(config.total_timesteps, callback=[callback, CoreScalars()])
        except NonFiniteError as error:
            status = tell(error, NOT_FINITE)
        except Exception:
            if signals.received is None:
                raise
            # Stopped, or an error in a worker process that received the same signal
            status = 128 + signals.received
            callback.close()
            say(f"stopped by {signals.name} after {model.num_timesteps:,} steps")
        finally:  # after a crash as well
            signals.ignore()  # a Ctrl-C from here on must not lose the model
            callback.close()
            save_model(model, run.model_path("last"))
            model.logger.close()
            with suppress(OSError, EOFError):  # the same signal may have ended the worker processes
                model.get_env().close()  # type: ignore[union-attr]
    seconds = time.monotonic() - started
    say(f"time: {seconds:,.1f} seconds, {model.num_timesteps / seconds:,.0f} steps per second")
    returns = episode_returns(model)
    if returns:
        say(f"return: {np.mean(returns):.3f}, mean of the last {len(returns)} training episodes")
    say(f"model: {run.model_path('last')}")
    say(f"next: {how_to_run('evaluate')} {shlex.quote(f'run={run.path}')}")
    return status


def main() -> None:
    """The command line."""
    run_verb(train, "train", __doc__ or "", TrainKeys, env_family)


if __name__ == "__main__":
    main()
