"""What bouncing_balls.py and language_model.py share: cores of equal size, results that are kept, and a table."""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from arguments import at_least_one
from gymnasium import spaces
from torch import nn

from rmc_rl import MlpMemoryPolicy, match_parameters
from rmc_rl.agents.cores import Core, make_core
from rmc_rl.errors import UsageError
from rmc_rl.runs.folder import git_commit, written_whole
from rmc_rl.studies.statistics import summarise

Result = dict[str, float]
WHOLE = ("parameters", "seconds")  # results without decimals
UNCHANGED = ("rows", "seeds", "threads", "out", "table")  # arguments that do not change a result


class Row(NamedTuple):
    """A row of the table: a core and its arguments."""

    label: str
    core: str
    kwargs: dict[str, Any]


class Task(NamedTuple):
    """What a script trains: ``run(row, arguments, seed)`` returns the row's numbers with that seed."""

    rows: dict[str, Row]
    columns: dict[str, str]  # key of a result -> title, in the order of the table
    run: Callable[[Row, argparse.Namespace, int], Result]
    defaults: dict[str, Any]  # of the arguments that both scripts have
    add_own_arguments: Callable[[argparse.ArgumentParser], None]


def sized_core(row: Row, inputs: int, params: int) -> Core:
    """
    A core with about as many parameters as asked for.

    :param row: which core, and its other arguments
    :param inputs: ``F``, features read per step
    :param params: of the core alone
    :raises UsageError: where no size of the core comes within 2 %
    """
    space = spaces.Box(-1, 1, (inputs,), np.float32)
    asked = dict(core=row.core, core_kwargs=row.kwargs, net_arch=[])
    found = match_parameters(MlpMemoryPolicy, space, spaces.Discrete(2), asked, params, of="core")
    return make_core(row.core, inputs, found["core_kwargs"])


def step(optimizer: torch.optim.Optimizer, loss: torch.Tensor, parameters: list[nn.Parameter], clip: float) -> None:
    """One update with a clipped gradient."""
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(parameters, clip)
    optimizer.step()


def make_parser(task: Task, description: str | None) -> argparse.ArgumentParser:
    """The arguments of both scripts, and those of the task."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    rows = list(task.rows)
    parser.add_argument("--rows", nargs="+", default=rows, choices=rows, metavar="ROW", help=", ".join(rows))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--threads", type=at_least_one, default=1)
    parser.add_argument("--out", type=Path, help="the results; what is there is not run again")
    parser.add_argument("--quick", action="store_true", help="a few updates, to see whether the script works")
    parser.add_argument("--table", action="store_true", help="print the table of what is there and train nothing")
    parser.add_argument("--updates", type=at_least_one)
    parser.add_argument("--batch", type=at_least_one, help="sequences of an update")
    parser.add_argument("--learning-rate", type=float, help="of Adam; falls linearly to a twentieth")
    parser.add_argument("--params", type=at_least_one, help="parameters of the core")
    parser.add_argument("--features", type=at_least_one, help="that the core reads")
    task.add_own_arguments(parser)
    parser.set_defaults(**task.defaults)
    return parser


def table(task: Task, found: dict[str, dict[str, Any]], rows: list[str]) -> list[str]:
    """Mean over seeds and its 95 % interval for each row and column, in Markdown."""
    lines = [f"| core | seeds | {' | '.join(task.columns.values())} |", "| --- " * (2 + len(task.columns)) + "|"]
    for label in rows:
        results = [each["result"] for each in found.values() if each["row"] == label]
        cells = []
        for key in task.columns:
            values = [result[key] for result in results if key in result]
            summary = summarise(values) if values else None
            if summary is None:
                cells.append("")
            elif key in WHOLE:
                cells.append(f"{summary['mean']:,.0f}")
            elif len(values) < 3 or summary["std"] == 0:
                cells.append(f"{summary['mean']:,.3f}")
            else:
                cells.append(f"{summary['mean']:,.3f} [{summary['interval'][0]:,.3f}, {summary['interval'][1]:,.3f}]")
        if results:
            lines.append(f"| {label} | {len(results)} | {' | '.join(cells)} |")
    return lines


def main(task: Task, description: str | None) -> int:
    """Train each row with each seed, keep what it found, and print the table."""
    parser = make_parser(task, description)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    asked = {key: value for key, value in vars(arguments).items() if key not in UNCHANGED}
    settings = json.loads(json.dumps(asked, default=str))
    found: dict[str, dict[str, Any]] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for name, each in found.items():
        if each["settings"] != settings:
            parser.error(f"{arguments.out} holds {name} with other settings, {each['settings']}: name another --out")
    for seed in [] if arguments.table else arguments.seeds:
        for label in arguments.rows:
            name = f"{label}/seed{seed}"
            if name in found:
                continue
            torch.manual_seed(seed)
            begin = time.perf_counter()
            try:
                result = task.run(task.rows[label], arguments, seed)
            except UsageError as error:
                parser.error(str(error))
            result["seconds"] = round(time.perf_counter() - begin, 1)
            found[name] = dict(row=label, settings=settings, result=result, git_commit=git_commit())
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(arguments.out) as file:
                file.write(json.dumps(found, indent=1).encode())
            print(name, {key: float(f"{value:.4g}") for key, value in result.items()}, file=sys.stderr, flush=True)
    print("\n".join(table(task, found, arguments.rows)))
    return 0
