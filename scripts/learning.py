"""
What runs have learned, as a table and a picture: scripts/learning.py <folder of runs> ... [--picture curves.png]

A row for each environment, its keywords and core, over all seeds found in the folders: the return at the end (mean over
seeds of the last 100 training episodes' mean, with a 95 % bootstrap interval over seeds), steps and seconds until the
return first reached --threshold (median over seeds; seeds that never did are counted).
"""

import argparse
import csv
from collections import defaultdict
from pathlib import Path

import numpy as np

from rmc_rl.evaluate import summarise
from rmc_rl.runs import Run

RETURN, STEPS, SECONDS = "rollout/ep_rew_mean", "time/total_timesteps", "time/time_elapsed"


def read(run: Run) -> dict[str, np.ndarray]:
    """The columns of a run's progress.csv that have a return."""
    with (run.path / "progress.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get(RETURN)]
    return {name: np.array([float(row[name]) for row in rows]) for name in (RETURN, STEPS, SECONDS)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="searched for runs")
    parser.add_argument("--threshold", type=float, default=0.95, help="a return worth reaching (default: 0.95)")
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

    print(f"| environment | core | seeds | return | steps to {arguments.threshold:g} | seconds to it |")
    print("| --- | --- | --- | --- | --- | --- |")
    for (env, core), runs in groups.items():
        found = summarise([run[RETURN][-1] for run in runs])
        low, high = found["interval"]
        reached = [np.argmax(run[RETURN] >= arguments.threshold) for run in runs if run[RETURN].max() >= arguments.threshold]
        first = [run for run in runs if run[RETURN].max() >= arguments.threshold]
        cells = ["never"] * 2
        if first:
            medians = [np.median([run[name][at] for run, at in zip(first, reached, strict=True)]) for name in (STEPS, SECONDS)]
            cells = [f"{median:,.0f} ({len(first)} of {len(runs)} seeds)" for median in medians]
        spread = f" [{low:.3f}, {high:.3f}]" if len(runs) > 1 else ""
        print(f"| {env} | {core} | {len(runs)} | {found['mean']:.3f}{spread} | {cells[0]} | {cells[1]} |")
    print(f"\ncommits: {', '.join(sorted(str(commit) for commit in commits))}")

    if arguments.picture:
        draw(groups, arguments.picture)


def draw(groups: dict[tuple[str, str], list[dict[str, np.ndarray]]], path: Path) -> None:
    """A line for each run, a colour for each core, a panel for each environment."""
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
