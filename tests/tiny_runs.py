"""Runs that take a moment, and what they leave."""

import csv
from pathlib import Path

TINY = [  # on the small copy task
    "env=rmc_rl/Copy-v0",
    "env_kwargs.n_symbols=4",
    "env_kwargs.length=3",
    "env_kwargs.delay=5",
    "device=cpu",
    "num_threads=1",
    "n_envs=4",
    "algo.n_steps=22",
    "algo.batch_size=44",
    "algo.n_epochs=1",
]
SHORT = [*TINY, "total_timesteps=88"]


def curve(run: Path) -> list[dict[str, str]]:
    """The rows of a run's progress file, without times."""
    with (run / "progress.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{name: value for name, value in row.items() if name not in ("time/fps", "time/time_elapsed")} for row in rows]
