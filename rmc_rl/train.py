"""
Train an agent with a memory by recurrent PPO: python -m rmc_rl.train key=value ...

  python -m rmc_rl.train env_kwargs.n_symbols=4 env_kwargs.length=3 env_kwargs.delay=5   a small copy task, minutes
  python -m rmc_rl.train env=ALE/Pong-v5 core=rmc core.num_slots=8                       Atari
  python -m rmc_rl.train env=CartPole-v1 core=memoryless total_timesteps=50000           any Gymnasium id
  python -m rmc_rl.train env=my_module:MyEnv-v0 core=my_module:my_core                   your own
  python -m rmc_rl.train -m seed=0,1,2 core=rmc,lstm,memoryless params=50000             a sweep over cores of the same size

  python -m rmc_rl.train curriculum.delay=[5,50]                                         a keyword that rises with the return
  python -m rmc_rl.train env=CartPole-v1 partial.hide=[1,3]                              without parts of the observation
  python -m rmc_rl.train evaluate_every=50000 evaluation.env_kwargs.delay=100            generalisation as a curve
  python -m rmc_rl.train -m hydra/launcher=joblib seed=0,1,2                             side by side: install rmc-rl[sweeps]

  python -m rmc_rl.train resume=<folder of a run>                                        go on with a run that was stopped
  python -m rmc_rl.train name=first resume=auto                                          start the run called first, or go on
  python -m rmc_rl.train -m seed=0,1,2 resume=auto                                       go on with a sweep of the same command
  python -m rmc_rl.train init=<folder of a run> env_kwargs.delay=50                      a new run from the weights of another

  torchrun --standalone --nproc-per-node=2 -m rmc_rl.train env=ALE/Pong-v5               two processes that train one agent

The run's folder is runs/<env>/<core>/<stamp>-seed<k>. It holds config.yaml, model.zip, best/model.zip, checkpoints/,
TensorBoard's events and progress.csv. Ctrl-C (status 130), SIGTERM (143), SIGHUP (129) and SIGUSR1 (138) end the run after
the present update, with a checkpoint; a second one ends it at once. A mistake on the command line gets one line and status 2,
a number that is not finite one line and status 3, a disk that is full or a worker process that died one line and status 1.
A run is trained by one process at a time: another one that is started with the same name gets one line and status 2.
"""

import re
import shlex
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import Logger

from rmc_rl.agents import parallel
from rmc_rl.agents.cores import core_class
from rmc_rl.agents.cores.kernels.dispatch import report
from rmc_rl.command_line.advice import memory_demand, warn_about_memory
from rmc_rl.command_line.agent import make_env, make_model, parameter_counts, reference_returns
from rmc_rl.command_line.app import FAILED, NOT_FINITE, how_to_run, run_verb, tell
from rmc_rl.command_line.callbacks import RunCallbacks
from rmc_rl.command_line.costs import Costs
from rmc_rl.command_line.curriculum import set_last_values
from rmc_rl.command_line.devices import check_threads, keep_freed_memory
from rmc_rl.command_line.progress import in_words, say, told
from rmc_rl.command_line.resuming import find_run, given_keys, initial_model, say_what_changes
from rmc_rl.command_line.schema import TrainKeys
from rmc_rl.command_line.signals import Stopped, StopSignals, time_limit
from rmc_rl.command_line.sweep import DONE, Job, should_stop, stopped_by, sweep_stamp
from rmc_rl.envs.base import Returns
from rmc_rl.envs.make_vec import env_family
from rmc_rl.errors import NonFiniteError
from rmc_rl.runs.checkpoint import Checkpoints, find_checkpoints
from rmc_rl.runs.curves import make_logger, told_once
from rmc_rl.runs.folder import Run, save_model
from rmc_rl.runs.loading import load_weights, saved_steps

CLOSING_SECONDS = 20  # that an environment may take to close


def train(config: DictConfig, command: str | None = None) -> int:
    """
    Train an agent as the configuration says, or go on with a run.

    :param config: checked; see ``configs/train.yaml``
    :param command: the command line that repeats the run; None: it was started from Python
    :return: exit status: 0; 1 if training failed; 3 if a number was not finite; 128 and the number of the signal that
        stopped it
    :raises UsageError: for a mistake in the configuration, before anything is written; or if another process trains the run
    """
    with ExitStack() as locks:
        return _train(config, command, locks)


def _train(config: DictConfig, command: str | None, locks: ExitStack) -> int:
    """See :func:`train`; ``locks`` holds the lock of the run's folder."""
    old_run, config = _find(config, command, locks)
    initial = None if config.init is None or old_run is not None else initial_model(config.init)
    if old_run is None:
        set_last_values(config)
    check_threads(config.num_threads)
    keep_freed_memory()
    model = make_model(config, make_env(config))
    if initial is not None:
        load_weights(initial, model)
    demand = memory_demand(model)  # before a curriculum lowers it
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    callbacks = RunCallbacks(config, model)
    run = old_run or _create(config, locks)
    told["run"] = str(run.path)
    callbacks.follow(run)
    signals = StopSignals(is_patient=parallel.size() > 1)  # without one process the others cannot finish the update
    checkpoints = Checkpoints(
        run.checkpoints_path,
        config.checkpoint_every,
        config.keep_checkpoints,
        callbacks=callbacks.stateful,
        should_stop=lambda: signals.should_stop() or should_stop() or callbacks.is_out_of_patience(),
        after_save=lambda: save_model(model, run.model_path("last")),
    )
    # a run that was stopped before its first checkpoint starts again: its seed gives the same numbers
    found = parallel.from_first(find_checkpoints(run.checkpoints_path) if old_run is not None else [])
    if found:
        checkpoints.resume(model, found[0])
        say_what_changes(run, config, model.num_timesteps)
    first_step, ending = model.num_timesteps, _Ending.of(run, model)
    remaining = config.total_timesteps - first_step
    if parallel.is_first() and (old_run is None or config.total_timesteps != run.read_config().total_timesteps):
        run.write_config(config, command)
    _say_what_runs(run, config, model)
    warn_about_memory(model, demand)
    if remaining <= 0 or parallel.any_of(callbacks.is_out_of_patience()):
        why = "total_timesteps=... goes on for longer" if remaining <= 0 else "no evaluation was better; patience=null goes on"
        say(f"the run has taken its {model.num_timesteps:,} steps; {why}")
        if saved_steps(run.model_path("last"), model) != model.num_timesteps:  # killed right after the last checkpoint
            _save_if_finite(model, run)
        callbacks.close()
        told["result"] = ", ".join(["finished before", *_as_words(callbacks.reached())])
        return 0

    costs = Costs()
    goes_on_at = first_step if old_run is not None else None
    model.set_logger(make_logger(run.path, goes_on_at) if parallel.is_first() else Logger(None, []))
    status, again = 0, f"to go on: {how_to_run('train')} {shlex.quote(f'resume={run.path}')}"
    with _closing(model), signals, told_once():
        try:
            model.learn(remaining, callback=[checkpoints, *callbacks.in_order], reset_num_timesteps=not found)
        except NonFiniteError as error:
            status = tell(error, NOT_FINITE)
        except Stopped:  # by a second signal
            pass
        except Exception as error:
            say(f"training failed after {model.num_timesteps:,} steps; {again}")
            if not isinstance(error, OSError | EOFError):
                raise
            died = config.processes and isinstance(error, EOFError | ConnectionError)
            status = tell(OSError(_dead_workers(model)) if died else error, FAILED)
        finally:  # after a crash as well
            signals.ignore()  # a Ctrl-C from here on must not lose the model
            callbacks.close()
            with suppress(OSError):  # the disk may be full, and worker processes may have died
                _save_if_finite(model, run)
                model.logger.close()
    if status == 0:
        status = _say_why_it_ended(model, config, callbacks, signals, again)
    told["cpu_seconds"] = costs.cpu_seconds
    told["result"] = ", ".join(_as_words(callbacks.reached())) or f"{model.num_timesteps:,} steps"
    for line in costs.lines(model.num_timesteps - first_step, model.device):
        say(line)
    ending.say(callbacks.reached())
    return status


def _find(config: DictConfig, command: str | None, locks: ExitStack) -> tuple[Run | None, DictConfig]:
    """The run that goes on, locked, and its configuration; None for a new one. The first of several processes decides."""
    found: Any = None
    if parallel.is_first():
        found = find_run(config, [] if command is None else given_keys(), command)
        if found[0] is not None:
            locks.enter_context(found[0].locked())
    return parallel.from_first(found)  # type: ignore[no-any-return]


def _create(config: DictConfig, locks: ExitStack) -> Run:
    """A new run, locked. The first of several processes makes its folder."""
    run: Any = None
    if parallel.is_first():
        run = Run.create(config.runs_dir, config.env, config.core.name, config.seed, config.name, sweep_stamp())
        locks.enter_context(run.locked())
        run.check_is_new()
    return parallel.from_first(run)  # type: ignore[no-any-return]


def _say_why_it_ended(
    model: BaseAlgorithm, config: DictConfig, callbacks: RunCallbacks, signals: StopSignals, again: str
) -> int:
    """Say why a run ended before its last step, if it did; returns the exit status."""
    if model.num_timesteps >= config.total_timesteps:
        return 0
    received = next((each for each in parallel.gather(signals.received) if each is not None), None)
    number = received if received is not None else stopped_by()
    if number is not None:
        who = signal.Signals(received).name if received is not None else "the sweep"
        say(f"stopped by {who} after {model.num_timesteps:,} steps; {again}")
        return 128 + number
    why = "a callback"
    if callbacks.evaluations is not None and callbacks.is_out_of_patience():
        why = f"patience: none of the last {callbacks.evaluations.waited} evaluations was better"
    say(f"ended after {model.num_timesteps:,} steps by {why}")
    return 0


@dataclass
class _Ending:
    """
    What a run tells at its end, as far as it is known before the environment is closed.

    :param run: the run
    :param reference: returns of some players
    :param harder: an argument with two values of a keyword that the world draws for each episode: the one of training and
        twice as much; empty if there is none
    """

    run: Run
    reference: Returns
    harder: str

    @classmethod
    def of(cls, run: Run, model: BaseAlgorithm) -> "_Ending":
        env: Any = model.get_env()
        reference, harder = reference_returns(env), ""
        if reference != Returns() and (names := env.get_attr("ranges")[0]):
            value = env.get_attr(names[-1])[0]
            value = max(value) if isinstance(value, list | tuple) else value
            harder = f" env_kwargs.{names[-1]}={value},{2 * value}" if isinstance(value, int) else ""
        return cls(run, reference, harder)

    def say(self, reached: dict[str, float]) -> None:
        """Tell what the run has reached, where its model is, and what to do next."""
        if "return" in reached:
            say(f"return: {reached['return']:.3f}, mean of the last training episodes")
        if "evaluation" in reached:
            say(f"evaluation: return {reached['evaluation']:.3f}, the best one {reached['best evaluation']:.3f}, see best/")
        if text := in_words(self.reference):
            say(f"for comparison: {text}")
        say(f"model: {self.run.model_path('last')}")
        argument = shlex.quote(f"run={self.run.path}")
        say(f"next: {how_to_run('evaluate')} {argument}")
        if self.harder:
            say(f"or:   {how_to_run('evaluate')} -m {argument}{self.harder}")


def _as_words(reached: dict[str, float]) -> list[str]:
    return [f"{name} {value:.3f}" for name, value in reached.items()]


def _at_sweep_end(jobs: Sequence[Job]) -> None:
    """The command that compares the runs of a sweep."""
    folders = list(dict.fromkeys(job.told["run"] for job in jobs if job.state == DONE and "run" in job.told))
    if folders:
        say(f"next: {how_to_run('compare')} {shlex.quote(f'runs={_as_patterns(folders)}')}")


def _as_patterns(folders: Sequence[str]) -> str:
    """
    A short text that names the runs of a sweep: patterns with the time of the sweep, which the names of its runs begin with.

    :param folders: of the runs, ``<runs_dir>/<env>/<core>/<name>``
    """
    found: dict[str, None] = {}
    for folder in folders:
        path = Path(folder)
        stamp = re.match(r"\d{8}-\d{6}", path.name)
        found[str(path.parents[2] / "*" / "*" / f"{stamp[0]}-*") if stamp else folder] = None
    return ",".join(found)


def _say_what_runs(run: Run, config: DictConfig, model: BaseAlgorithm) -> None:
    counts = parameter_counts(model)
    say(OmegaConf.to_yaml(config).rstrip())
    say(f"parameters: {sum(counts.values()):,} ({', '.join(f'{name} {count:,}' for name, count in counts.items())})")
    policy: Any = model.policy
    core = sum(parameter.numel() for parameter in policy.core.parameters())
    share = 100 * core / max(1, sum(counts.values()))
    say(f"memory: the core has {core:,} parameters, {share:.0f} % of the policy; its state {policy.core.state_size:,} numbers")
    say(f"device: {model.device}")
    if parallel.size() > 1:
        say(f"processes: {parallel.size()}, with {model.n_envs} copies of the environment each")
    if config.core.get("kernel") is not None:
        say(f"kernel: {report(config.core.kernel, core_class(config.core.name).kernel_family, model.device.type)}")
    say(f"run: {run.path}" + (f" (goes on at {model.num_timesteps:,} steps)" if model.num_timesteps else ""))


def _save_if_finite(model: BaseAlgorithm, run: Run) -> None:
    """Save the last model, but not over a better one if it holds a number that is not finite."""
    if parallel.is_first() and all(bool(torch.isfinite(parameter).all()) for parameter in model.policy.parameters()):
        save_model(model, run.model_path("last"))


def _workers(model: BaseAlgorithm) -> Sequence[Any]:
    """The worker processes of the environment."""
    workers: Sequence[Any] = getattr(model.get_env().unwrapped, "processes", [])  # type: ignore[union-attr]
    return workers


def _dead_workers(model: BaseAlgorithm) -> str:
    """Which worker processes have died, and how."""
    processes = _workers(model)
    wait([process.sentinel for process in processes], timeout=1)  # its pipe ends before the process
    dead = [f"copy {index}, exit code {process.exitcode}" for index, process in enumerate(processes) if not process.is_alive()]
    return f"a process of the environment has died: {'; '.join(dead) or 'it sent no answer'}"


@contextmanager
def _closing(model: BaseAlgorithm) -> Iterator[None]:
    """
    Close the environment after a ``with`` block.

    The run has been saved then: it does not fail because of an environment that cannot be closed.
    """
    try:
        yield
    finally:
        try:
            with time_limit(CLOSING_SECONDS):
                model.get_env().close()  # type: ignore[union-attr]
        except TimeoutError:
            warnings.warn(f"the environment did not close within {CLOSING_SECONDS} seconds", stacklevel=2)
        except (OSError, EOFError):  # a worker process has died; the others would tell of the pipe that ends
            for process in _workers(model):
                process.kill()
        except Exception as error:  # whatever a user's class raises
            why = f"{type(error).__name__}: {' '.join(str(error).split())}"
            warnings.warn(f"the environment could not be closed: {why}", stacklevel=2)


def main() -> None:
    """The command line."""
    run_verb(train, "train", __doc__ or "", TrainKeys, env_family, _at_sweep_end)


if __name__ == "__main__":
    main()
