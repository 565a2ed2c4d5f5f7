"""
Curves of a few runs side by side: python scripts/curves.py docs/curves.png run=label ... [--columns rollout/ep_rew_mean ...]

Draws a panel for each column of progress.csv and a line for each run. Entropy losses are drawn as entropies, with the opposite
sign. Needs matplotlib.
"""

import argparse
import csv
from pathlib import Path

TITLES = {
    "rollout/ep_rew_mean": "mean return of 100 episodes",
    "train/entropy_loss": "entropy of the actions (nats)",
    "train/gradient_norm": "gradient norm, before clipping",
    "train/answer_probability": "probability of the right answers",
}
STEPS = "time/total_timesteps"
MOST_COLOURS = 32  # of the picture, so that its file is small


def read(run: Path, column: str) -> tuple[list[float], list[float]]:
    """Steps in thousands, and a column where it has a value."""
    with (run / "progress.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get(column)]
    sign = -1 if column.endswith("entropy_loss") else 1
    return [float(row[STEPS]) / 1000 for row in rows], [sign * float(row[column]) for row in rows]


def main() -> None:
    import matplotlib.pyplot as plt
    from PIL import Image

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a PNG")
    parser.add_argument("runs", nargs="+", help="<folder of a run>=<label>")
    parser.add_argument("--columns", nargs="+", default=["rollout/ep_rew_mean"], help="of progress.csv, a panel for each")
    arguments = parser.parse_args()
    figure, axes = plt.subplots(1, len(arguments.columns), figsize=(4.6 * len(arguments.columns), 3), squeeze=False)
    for axis, column in zip(axes[0], arguments.columns, strict=True):
        for each in arguments.runs:
            run, _, label = each.rpartition("=")
            axis.plot(*read(Path(run), column), label=label, linewidth=1.2)
        axis.set(xlabel="thousand steps", ylabel=TITLES.get(column, column))
        axis.grid(alpha=0.3)
    axes[0, 0].legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(arguments.out, dpi=90)
    Image.open(arguments.out).convert("RGB").quantize(MOST_COLOURS).save(arguments.out, optimize=True)


if __name__ == "__main__":
    main()
