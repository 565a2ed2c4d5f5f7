"""
From an environment of one's own to an agent without PyTorch: scripts/engineer_story --out folder [--quick]

Runs the commands of docs/deploying.md, one after the other, in a new folder with the files of docs/deploying: train, tune 10
trials, train with the best settings, evaluate, export, and play with NumPy and ONNX Runtime in a process that cannot import
PyTorch, Gymnasium or this package. The environment has a Dict observation, action masks and numbers that must be normalised.

Without --quick the status is 1 if the exported agent takes the right box in less than 90 % of the episodes.
"""

import argparse
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

FILES = Path(__file__).resolve().parent.parent / "docs" / "deploying"
ABSENT = ("torch", "gymnasium", "rmc_rl", "stable_baselines3", "sb3_contrib")  # where the agent plays
ALONE = (
    f"import runpy, sys; sys.modules.update(dict.fromkeys({ABSENT!r})); sys.path.insert(0, '.'); "
    "del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
)
GOOD = 0.9
KEYS = "env=depot_env:Depot-v0 core=gru normalize=true num_threads=1 device=cpu"
STEPS, QUICK_STEPS = "total_timesteps=40000", "total_timesteps=1024 algo.n_steps=16 algo.n_epochs=1"


def run(command: str, folder: Path) -> str:
    """Run a command of the page; returns what it printed."""
    print(f"\n$ {command}", flush=True)
    words = shlex.split(command)
    if words[:2] == ["python", "play.py"]:
        words[:2] = ["python", "-c", ALONE, "play.py"]
    words[0] = sys.executable
    done = subprocess.run(words, cwd=folder, stdout=subprocess.PIPE, text=True, check=False)
    print("\n".join(done.stdout.splitlines()[-8:]), flush=True)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


def newest(folder: Path) -> str:
    """The run that was started last."""
    return max(path.parent.relative_to(folder).as_posix() for path in folder.glob("runs/depot_env-Depot-v0/gru/*/config.yaml"))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--quick", action="store_true", help="a few steps and one trial: do the commands work?")
    options = parser.parse_args()
    folder: Path = options.out
    folder.mkdir(parents=True)
    for path in FILES.glob("*.py"):
        shutil.copy(path, folder)
    steps, trials, episodes = (QUICK_STEPS, 1, 10) if options.quick else (STEPS, 10, 500)
    run(f"python -m rmc_rl.train {KEYS} {steps}", folder)
    run(f"python -m rmc_rl.tune {KEYS} {steps} trials={trials}", folder)
    run("python -m rmc_rl.train --config-dir=runs/studies/depot_env-Depot-v0/gru +tuned=best seed=1", folder)
    best = newest(folder)
    run(f"python -m rmc_rl.evaluate run={best} episodes={episodes}", folder)
    run(f"python -m rmc_rl.export run={best}", folder)
    (folder / best / "exports" / "last.onnx").rename(folder / "policy.onnx")
    printed = run(f"python play.py policy.onnx {episodes}", folder)
    found = re.search(r"mean return ([\d.]+) .* without PyTorch: True", printed)
    if found is None or (not options.quick and float(found[1]) < GOOD):
        sys.exit(f"error: the exported agent must take the right box in {GOOD:.0%} of the episodes")


if __name__ == "__main__":
    main()
