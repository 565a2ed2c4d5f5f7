"""
What runs have learned: python scripts/learning.py <folder of runs> ... [--threshold 0.95] [--picture curves.png]

Prints a row for each environment, its keywords and core, over all runs in the folders, stopped runs included: their steps
and the return at the end (mean over runs of the last 100 training episodes' mean, with a 95 % bootstrap interval over
runs). With --threshold it adds the steps and seconds until the return first reached it (medians over the runs that did).
"""

import argparse
import csv
from collections import defaultdict
from pathlib import Path

import numpy as np

from rmc_rl.runs.folder import Run
from rmc_rl.studies.statistics import first_reached, summarise

RETURN, STEPS, SECONDS = "rollout/ep_rew_mean", "time/total_timesteps", "time/time_elapsed"


def read(run: Run) -> dict[str, np.ndarray]:
    """The columns of a run's progress.csv, for the rows that have a return."""
    with (run.path / "progress.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get(RETURN)]
    return {name: np.array([float(row[name]) for row in rows]) for name in (RETURN, STEPS, SECONDS)}


def reached(runs: list[dict[str, np.ndarray]], threshold: float) -> list[str]:
    """Steps and seconds until the return first reached a threshold, medians over the runs that did."""
    first = [(run, at) for run in runs if (at := first_reached(run[RETURN], threshold)) is not None]
    if not first:
        return ["never"] * 2
    medians = [np.median([run[name][at] for run, at in first]) for name in (STEPS, SECONDS)]
    return [f"{median:,.0f} ({len(first)} of {len(runs)} seeds)" for median in medians]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="folders to search for runs")
    parser.add_argument("--threshold", type=float, help="a return to reach")
    parser.add_argument("--picture", type=Path, help="a PNG of the curves; needs matplotlib")
    arguments = parser.parse_args()

    groups = defaultdict(list)
    commits = set()
    for path in sorted(path.parent for folder in arguments.folders for path in folder.rglob("config.yaml")):
        run = Run.open(path)
        config = run.read_config()
        keywords = ", ".join(f"{key}={value}" for key, value in config.env_kwargs.items())
        progress = read(run)
        if not len(progress[RETURN]):
            print(f"left out, no episode ended: {path}")
            continue
        groups[f"{config.env} {keywords}".strip(), config.core.name].append(progress)
        commits.add(config.run.git_commit)

    titles = ["environment", "core", "seeds", "steps", "return"]
    if arguments.threshold is not None:
        titles += [f"steps to {arguments.threshold:g}", "seconds to it"]
    print(f"| {' | '.join(titles)} |")
    print("| " + "--- | " * len(titles))
    for (env, core), runs in groups.items():
        found = summarise([run[RETURN][-1] for run in runs])
        low, high = found["interval"]
        spread = f" [{low:.3f}, {high:.3f}]" if len(runs) > 1 else ""
        steps = sorted({f"{run[STEPS][-1]:,.0f}" for run in runs}, key=len)
        cells = [env, core, str(len(runs)), " or ".join(steps), f"{found['mean']:.3f}{spread}"]
        if arguments.threshold is not None:
            cells += reached(runs, arguments.threshold)
        print(f"| {' | '.join(cells)} |")
    print(f"\ncommits: {', '.join(sorted(str(commit) for commit in commits))}")

    if arguments.picture:
        draw(groups, arguments.picture)


def draw(groups: dict[tuple[str, str], list[dict[str, np.ndarray]]], path: Path) -> None:
    """Draw a line for each run, a colour for each core, a panel for each environment."""
    import matplotlib.pyplot as plt

    envs = list(dict.fromkeys(env for env, _ in groups))
    cores = list(dict.fromkeys(core for _, core in groups))
    figure, axes = plt.subplots(1, len(envs), figsize=(6 * len(envs), 3.6), squeeze=False, layout="constrained")
    for (env, core), runs in groups.items():
        axis = axes[0, envs.index(env)]
        for index, run in enumerate(runs):
            label = core if index == 0 else None
            axis.plot(run[STEPS] / 1e6, run[RETURN], color=f"C{cores.index(core)}", label=label, alpha=0.8, linewidth=1)
        axis.set(title=env, xlabel="million steps", ylabel="mean return of 100 training episodes", ylim=(0, 1.02))
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
