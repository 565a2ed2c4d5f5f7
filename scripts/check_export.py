"""
Exports of all cores against PyTorch: python scripts/check_export.py [--cores rmc rims] [--observations box image dict] ...

Each cell is an agent with random weights that is exported, loaded, and played side by side with the policy; episodes start
at random steps. It states the largest difference of any output over all steps and batch sizes: first from the state that the
policy has at each step, then with the file's own state for all steps, in which differences of rounding add up. Actions and
critics take turns: Discrete with masks, MultiDiscrete with masks, MultiBinary, Box; shared, separate and memoryless. Box
observations are normalised by running means. The status is 1 if a cell's first number is above 1e-5.

  python scripts/check_export.py --format pt2 --cores gru --steps 20
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from rmc_rl.agents import exporting
from rmc_rl.agents.cores import core_names
from rmc_rl.agents.parity import STEPS, TOLERANCE, check, random_steps
from rmc_rl.agents.policies import CRITICS, choose_policy
from rmc_rl.errors import UsageError

IMAGE = spaces.Box(0, 255, (3, 36, 36), np.uint8)
OBSERVATIONS: dict[str, spaces.Space[Any]] = {
    "box": spaces.Box(-np.inf, np.inf, (5,), np.float32),
    "image": IMAGE,
    "dict": spaces.Dict({"camera": IMAGE, "joints": spaces.Box(-1, 1, (3,), np.float64), "room": spaces.Discrete(4)}),
}
SCALINGS = {"box": {"": exporting.Scaling(np.array([100.0, 0, 0, -5, 1]), np.array([1.0, 3, 0.01, 2, 1]), 10.0)}}
ACTIONS: dict[str, tuple[spaces.Space[Any], bool]] = {
    "Discrete with masks": (spaces.Discrete(4), True),
    "MultiDiscrete with masks": (spaces.MultiDiscrete([3, 2]), True),
    "MultiBinary": (spaces.MultiBinary(3), False),
    "Box": (spaces.Box(-1, 1, (2,), np.float32), False),
}


def cell(core: str, kind: str, turn: int, options: argparse.Namespace, folder: Path) -> tuple[str, bool]:
    """Export one agent and check it: the text of the table's cell, and whether all is equal."""
    action = list(ACTIONS)[turn % len(ACTIONS)]
    (action_space, masked), critic = ACTIONS[action], CRITICS[turn % len(CRITICS)]
    space, scalings = OBSERVATIONS[kind], SCALINGS.get(kind, {})
    torch.manual_seed(turn)
    policy = choose_policy(space)(space, action_space, lambda _: 0.0, core=core, critic=critic)
    path = folder / f"{core}-{kind}.{options.format}"
    began = time.monotonic()
    try:
        exporting.export_policy(policy, path, options.format, scalings=scalings, masked=masked)
    except UsageError as error:
        print(f"{core}, {kind}: {error}", file=sys.stderr)
        return "not exported", False
    act, worst, drift = exporting.load_exported(path), 0.0, 0.0
    for batch in options.batches:
        steps = random_steps(policy, None, scalings, masked, batch, options.steps, seed=turn)
        parity = check(policy, act, steps, scalings, seed=turn)
        worst, drift = max(worst, parity.difference), max(drift, parity.drift)
        print(
            f"{core}, {kind}, {action}, critic {critic}, batch {batch}: {parity}, {time.monotonic() - began:.0f} s",
            file=sys.stderr,
            flush=True,
        )
    path.unlink()
    return f"{worst:.1e}, {drift:.1e} ({action}, {critic})", worst <= TOLERANCE


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", nargs="+", default=core_names(), choices=core_names(), metavar="CORE")
    parser.add_argument("--observations", nargs="+", default=list(OBSERVATIONS), choices=list(OBSERVATIONS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 7], help="numbers of environments")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--format", default="onnx", choices=exporting.FORMATS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    all_equal = True
    print(f"| core | {' | '.join(options.observations)} |")
    print(f"| --- |{' --- |' * len(options.observations)}")
    with tempfile.TemporaryDirectory() as folder:
        for core in options.cores:
            cells = []
            for kind in options.observations:
                turn = core_names().index(core) + list(OBSERVATIONS).index(kind)
                text, equal = cell(core, kind, turn, options, Path(folder))
                cells.append(text)
                all_equal &= equal
            print(f"| `{core}` | {' | '.join(cells)} |", flush=True)
    sys.exit(0 if all_equal else 1)


if __name__ == "__main__":
    main()
