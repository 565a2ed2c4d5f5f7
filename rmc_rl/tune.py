"""
Search for good settings of an agent in a number of trials: python -m rmc_rl.tune env=... core=... trials=50

  python -m rmc_rl.tune env_kwargs.n_symbols=4 env_kwargs.length=3 env_kwargs.delay=5 core=gru total_timesteps=200000 trials=20
  python -m rmc_rl.tune env=CartPole-v1 core=lstm seeds=3 evaluate_every=10000           three runs for each trial, evaluated
  python -m rmc_rl.tune env=CartPole-v1 core=lstm algo.gamma=0.99                        a key that is given is not searched
  python -m rmc_rl.tune env=CartPole-v1 core=lstm space.algo.learning_rate=[1e-4,1e-2,log] space.core.num_layers=[1,3]
  python -m rmc_rl.tune env=CartPole-v1 core=lstm space.algo.gamma=null                  a key of the shipped space left out
  python -m rmc_rl.tune env=CartPole-v1 core=lstm space=my_space.yaml                    a space of your own, and nothing else

All keys of rmc_rl.train set what the runs have in common. What is searched by default is in rmc_rl/configs/tune: space.yaml,
with files for the family of the world and for the core. A range is [low, high], [low, high, log] or [low, high, near_one], in
which 1 - value is drawn on a log scale; whole numbers if both ends are. A list of values is {choices: [32, 64]}.

The result of a trial is the interquartile mean over its seeds of the last mean return: of the evaluations if evaluate_every is
set, otherwise of the last training episodes. The first trial is the configuration without tuning, as near as the space allows.
Optuna proposes the others, and ends trials whose returns stay below the median. Each run is a process and a folder of its own,
as rmc_rl.train makes it; a run that fails ends its trial only.

The same command goes on with a study that was stopped or killed. Several processes, on one machine or on several that share
the folder, work on one study if each is started with this command: set num_threads=1. At the end, and after Ctrl-C, the best
trial is printed as a command. optuna-dashboard <study>/journal.log shows all trials. tune needs Optuna:
pip install 'rmc-rl[tune]'.
"""

import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig

from rmc_rl.command_line.agent import make_env, make_model
from rmc_rl.command_line.app import FAILED, how_to_run, run_verb
from rmc_rl.command_line.callbacks import RunCallbacks
from rmc_rl.command_line.costs import duration
from rmc_rl.command_line.curriculum import set_last_values
from rmc_rl.command_line.progress import bar_in_sweep, progress_bar, say, told
from rmc_rl.command_line.resuming import initial_model
from rmc_rl.command_line.schema import TuneKeys
from rmc_rl.command_line.signals import Stopped, StopSignals
from rmc_rl.command_line.trial_runs import EVALUATIONS, RETURNS, Interrupted, Pruned, RunFailed, TrialRuns
from rmc_rl.command_line.tuning import as_arguments, find_space, first_trial, settings, split_command, write_best
from rmc_rl.envs.make_vec import env_family
from rmc_rl.errors import require, require_choice, require_packages
from rmc_rl.runs.folder import Run
from rmc_rl.studies.search_space import Parameter
from rmc_rl.studies.statistics import interquartile_mean

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

EXTRAS = ("optuna", "scipy")
PRUNERS = ("median", "none")
REPORTS = 10  # of a run to the pruner, unless report_every is set


def tune(config: DictConfig, command: str | None = None) -> int:
    """
    Work on a study until it has all its trials, and print the best one.

    :param config: checked; see ``configs/tune.yaml``
    :param command: the command line, ``python -m rmc_rl.tune key=value ...``: the runs get its arguments
    :return: exit status: 0; 1 if no trial has a result; 128 and the number of the signal that stopped it
    :raises UsageError: for a mistake in the configuration, or a study that is damaged or is about something else
    """
    require_packages("tune", EXTRAS, "tune")
    require_choice("pruner", config.pruner, PRUNERS)
    require(command is not None, "tune needs the command line, as in python -m rmc_rl.tune env=CartPole-v1", command)
    for key in ("name", "resume"):
        require(config[key] is None, f"{key} must be null: tune names its runs, and the same command goes on", config[key])
    flags, fixed = split_command(str(command))
    space = find_space(config, fixed)
    _check_agent(config)
    folder = _folder(config)
    return _Tuning(config, folder, flags, fixed, space).work()


class _Tuning:
    """
    A process that works on a study.

    :param config: checked; see ``configs/tune.yaml``
    :param folder: of the study
    :param flags: of the command line, for the runs
    :param fixed: arguments of all runs
    :param space: what is searched
    """

    def __init__(
        self, config: DictConfig, folder: Path, flags: Sequence[str], fixed: Sequence[str], space: Sequence[Parameter]
    ):
        from rmc_rl.command_line import study  # it needs the extra

        self.config, self.folder, self.flags, self.fixed, self.space = config, folder, flags, fixed, space
        self.room = study
        pruner = study.make_pruner(config.pruner, config.prune_after)
        self.study = study.open_study(folder, settings(config, fixed, space), first_trial(config, space), pruner)
        self.seeds = range(config.seed, config.seed + config.seeds)
        self.metric = RETURNS if config.evaluate_every is None else EVALUATIONS

    def work(self) -> int:
        """Run trials until there are enough, or a signal comes; returns the exit status."""
        self._say_what_runs()
        signals = StopSignals()
        with self.room.Worker(self.folder) as worker, signals:
            try:
                while not signals.should_stop():
                    for number in self.room.retry_dead(self.study, worker):
                        say(f"trial {number}: its process has ended; its runs go on")
                    trial = self.room.take_trial(self.study, worker, self.config.trials)
                    if trial is None:
                        break
                    self._run(trial, signals)
            except Stopped:  # by a second signal: the next process finds that this one has ended
                pass
        status = self._say_best()
        if signals.received is None:
            return status
        say(f"stopped by {signals.name}; the same command goes on with the study")
        return 128 + signals.received

    def _run(self, trial: "optuna.Trial", signals: StopSignals) -> None:
        """Run a trial, and tell Optuna and the person what became of it."""
        from optuna.trial import TrialState

        room, config, started = self.room, self.config, time.monotonic()
        self.study.sampler = room.seeded_sampler(config.seed, trial.number, config.startup_trials)
        total, state, told_of = config.total_timesteps * config.seeds, TrialState.FAIL, ""
        values: list[float] = []
        try:
            with room.taken_over(), bar_in_sweep(sys.stderr if sys.stderr.isatty() else None, f"trial {trial.number}"):
                arguments = as_arguments({each.key: each.suggest(trial) for each in self.space})
                trial.set_user_attr("command", self._command(arguments))
                with progress_bar(total, "steps") as bar:
                    values = self._runs(trial, arguments, signals, lambda steps: _show(bar, steps)).train()
            state, told_of = TrialState.COMPLETE, f"return {interquartile_mean(np.array(values)):.4g}"
            told_of += f" ({', '.join(f'{value:.4g}' for value in values)})" * (len(values) > 1)
        except Pruned:
            state, told_of = TrialState.PRUNED, f"pruned at return {self._last_report(trial):.4g}"
        except RunFailed as error:
            told_of = f"FAILED: {error}"
        except Interrupted:
            room.requeue(self.study, trial.number)
            return
        except room.TakenOver:
            say(f"trial {trial.number}: another process has taken it, because this one did not answer")
            return
        try:
            with room.taken_over():
                if state == TrialState.COMPLETE:
                    trial.set_user_attr("returns", values)
                    self.study.tell(trial, float(interquartile_mean(np.array(values))))
                else:
                    self.study.tell(trial, state=state)
        except room.TakenOver:
            return
        best = self._best()
        ends = f"; best {best.value:.4g} of trial {best.number}" if best is not None else ""
        count = len(room.counted(self.study.get_trials(deepcopy=False)))
        say(f"{count}/{config.trials}  trial {trial.number}: {told_of}; {duration(time.monotonic() - started)}{ends}")
        if best is not None and best.number == trial.number:
            self._write(best)

    def _runs(self, trial: "optuna.Trial", arguments: list[str], signals: StopSignals, show: Any) -> TrialRuns:
        def report(steps: int, value: float) -> bool:
            if steps not in self.study.trials[trial.number].intermediate_values:
                trial.report(value, steps)
            return trial.should_prune()

        config = self.config
        return TrialRuns(
            folder=self.folder,
            env=config.env,
            core=config.core.name,
            number=self.room.runs_of(trial),
            seeds=self.seeds,
            arguments=[*self.flags, *self.fixed, *arguments],
            metric=self.metric,
            total_timesteps=config.total_timesteps,
            report_every=config.report_every or max(1, config.total_timesteps // REPORTS),
            report=report,
            should_stop=signals.should_stop,
            show=show,
        )

    def _last_report(self, trial: "optuna.Trial") -> float:
        reports = self.study.trials[trial.number].intermediate_values
        return reports[max(reports)]

    def _best(self) -> "FrozenTrial | None":
        try:
            return self.study.best_trial
        except ValueError:  # no trial has a result
            return None

    def _values(self, trial: "FrozenTrial") -> dict[str, Any]:
        return {each.key: each.value(trial.params[each.name]) for each in self.space}

    def _command(self, arguments: Sequence[str]) -> str:
        return f"{how_to_run('train')} {shlex.join([*self.flags, *self.fixed, *arguments])}"

    def _write(self, best: "FrozenTrial") -> list[str]:
        what = "evaluations" if self.metric == EVALUATIONS else "the last training episodes"
        comment = (
            f"trial {best.number}: return {best.value:.4g} of {what}, seeds {', '.join(map(str, self.seeds))}; "
            "train --config-dir=<this study> +tuned=best reads it"
        )
        return write_best(self.folder, self.config, self.fixed, self._values(best), comment)

    def _say_what_runs(self) -> None:
        config = self.config
        say(f"study: {self.folder} ({config.env}, core {config.core.name}), {config.trials} trials")
        of = "the last evaluation" if self.metric == EVALUATIONS else "the last training episodes"
        seeds = f"seed{'s' * (len(self.seeds) > 1)} {', '.join(map(str, self.seeds))}"
        say(f"result of a trial: mean return of {of} at {config.total_timesteps:,} steps, interquartile mean over {seeds}")
        for each in self.space:
            low_high = each.describe()
            say(f"  {each.key}: {low_high['choices'] if each.choices else ' '.join(map(str, low_high))}")

    def _say_best(self) -> int:
        """Print the best trial as a command, and what else is there; returns the exit status."""
        from optuna.trial import TrialState

        trials, best = self.room.counted(self.study.get_trials(deepcopy=False)), self._best()
        states = {TrialState.COMPLETE: "with a result", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
        states |= {TrialState.RUNNING: "running"}
        counts = {words: sum(trial.state == state for trial in trials) for state, words in states.items()}
        of = ", ".join(f"{count} {words}" for words, count in counts.items() if count)
        say(f"study: {len(trials)} trial{'s' * (len(trials) != 1)}{f' ({of})' if of else ''}")
        if best is None:
            say("no trial has a result")
            told["result"] = "no trial has a result"
            return FAILED
        told["result"] = f"best {best.value:.4g} of trial {best.number}"
        first = self.study.trials[0]
        without = "" if first.value is None or first.number == best.number else f"; the first trial has {first.value:.4g}"
        say(f"best: {best.value:.4g}, trial {best.number}{without}")
        say(f"best command: {self._command(as_arguments(self._values(best)))}")
        say(f"the same:     {how_to_run('train')} {shlex.join(self._write(best))}")
        say(f"all trials:   optuna-dashboard {shlex.quote(str(self.folder / self.room.JOURNAL))}")
        return 0


def _show(bar: Any, steps: int) -> None:
    bar.update(max(0, steps - bar.n))


def _folder(config: DictConfig) -> Path:
    """The folder of the study."""
    if config.study is not None:
        return Path(config.study).expanduser()
    return Run.named(config.runs_dir, "studies", config.env, config.core.name).path


def _check_agent(config: DictConfig) -> None:
    """Build what a run would build, so that a mistake in the keys of all runs is found before the first trial."""
    trained = config.copy()
    if config.init is not None:
        initial_model(config.init)
    set_last_values(trained)
    model = make_model(trained, make_env(trained))
    env: Any = model.get_env()
    with closing(env):
        RunCallbacks(trained, model).close()


def main() -> None:
    """The command line."""
    run_verb(tune, "tune", __doc__ or "", TuneKeys, env_family)


if __name__ == "__main__":
    main()
