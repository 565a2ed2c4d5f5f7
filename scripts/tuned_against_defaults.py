"""
A tuning study that is killed twice, and its best against the defaults: python scripts/tuned_against_defaults.py --out folder

Starts ``python -m rmc_rl.tune`` on the small copy task, kills it by ``kill -9`` after --kills trials, and starts it again
until it has all its trials. Then it trains the best command and the defaults with fresh seeds, and prints a table. What is
there already is not run again.

The return is the mean of the last 100 training episodes at the last step. Intervals are 95 % percentile bootstraps of the mean
over seeds. Other arguments go to tune and train: scripts/tuned_against_defaults.py --out folder -- env=CartPole-v1 core=lstm
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import optuna
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from rmc_rl.command_line.study import JOURNAL, counted
from rmc_rl.command_line.trial_runs import RETURNS
from rmc_rl.runs.folder import git_commit
from rmc_rl.runs.records import learning_curve, search_runs
from rmc_rl.studies import statistics

COPY = ["env=rmc_rl/Copy-v0", "env_kwargs.n_symbols=4", "env_kwargs.length=3", "env_kwargs.delay=5"]
TASK = [*COPY, "core=gru", "total_timesteps=150000", "device=cpu"]


def finished(study: Path) -> int:
    """How many trials have a result, or were pruned or failed by themselves."""
    path = study / JOURNAL
    if not path.exists():
        return 0
    storage = JournalStorage(JournalFileBackend(str(path)))
    names = optuna.get_all_study_names(storage)
    trials = optuna.load_study(storage=storage, study_name=names[0]).trials if names else []
    return sum(trial.state.is_finished() for trial in counted(trials))


def tune(study: Path, task: Sequence[str], trials: int, kills: Sequence[int]) -> None:
    """Work on the study, killed after each number of trials in ``kills``."""
    command = [sys.executable, "-m", "rmc_rl.tune", *task, f"trials={trials}", f"study={study}"]
    for kill in [*(number for number in kills if number > finished(study)), None]:
        process = subprocess.Popen(command)
        while process.poll() is None:
            time.sleep(1)
            if kill is not None and finished(study) >= kill:
                time.sleep(8)  # into the next trial
                process.kill()
                print(f"killed by kill -9 after {finished(study)} trials", flush=True)
                break
        process.wait()


def returns(runs: Path, arguments: Sequence[str], seeds: Sequence[int]) -> np.ndarray:
    """Train a command with each seed; returns what each has reached."""
    missing = [seed for seed in seeds if not list(runs.glob(f"*/*/seed{seed}/model.zip"))]
    for seed in missing:
        own = [f"seed={seed}", f"runs_dir={runs}", f"name=seed{seed}", "resume=auto"]
        subprocess.run([sys.executable, "-m", "rmc_rl.train", *arguments, *own], check=True, stdout=subprocess.DEVNULL)
    return np.array([learning_curve(run, RETURNS)[2, -1] for run in search_runs([str(runs)])])


def row(name: str, found: np.ndarray) -> str:
    """A row of the table."""
    low, high = np.asarray(statistics.interval([found], statistics.mean))
    each = ", ".join(f"{value:.3f}" for value in found)
    return f"| {name} | {statistics.interquartile_mean(found):.3f} | {found.mean():.3f} [{low:.3f}, {high:.3f}] | {each} |"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the study and of the runs")
    parser.add_argument("--trials", type=int, default=15)
    parser.add_argument("--kills", type=int, nargs="*", default=[4, 9], help="kill -9 after so many trials have ended")
    parser.add_argument("--seeds", type=int, nargs="+", default=[100, 101, 102, 103, 104])
    parser.add_argument("task", nargs="*", default=TASK, help="arguments of tune and train")
    options = parser.parse_args()
    study = options.out / "study"
    tune(study, options.task, options.trials, options.kills)
    tuned = returns(options.out / "tuned", [f"--config-dir={study}", "+tuned=best"], options.seeds)
    defaults = returns(options.out / "defaults", options.task, options.seeds)
    better = statistics.probability_of_improvement(tuned, defaults)
    print(f"commit {git_commit()}; task {' '.join(options.task)}; {options.trials} trials; seeds {options.seeds}")
    print(yaml.safe_dump(yaml.safe_load((study / "tuned" / "best.yaml").read_text()), default_flow_style=True, width=1000))
    print("| | interquartile mean | mean [95 % interval] | each seed |\n| --- | --- | --- | --- |")
    print(row("defaults", defaults))
    print(row("tuned", tuned))
    print(f"probability that a tuned run is better: {better:.2f}")


if __name__ == "__main__":
    main()
