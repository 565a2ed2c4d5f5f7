"""
What this checkout does on a CUDA GPU: scripts/gpu_check [--quick] [--only cuda triton ...] [--out folder]

Runs the tests that need a CUDA device, the Triton kernels against eager torch, training in two processes by NCCL (if there
are two GPUs), and the tables of the benchmarks, and writes one folder: report.md, which names the card, the versions and the
commit, and what each check printed. The report is written anew after each check, so a run that is stopped leaves one.

It needs no network. It makes a virtual environment that sees the PyTorch of this Python, installs the wheels of a folder in
it, and builds the C++ kernels if there is a compiler. The folder is filled beforehand, on a machine with a network and the
same system and processor: scripts/gpu_check --wheels [folder]. PyTorch, Triton and NVIDIA's packages are not in it.

The status is 0 if no check has failed, 1 if one has failed, and 2 if they cannot run here: there is no GPU, PyTorch is missing
or too old, the folder of wheels is empty or for another Python, or an argument is wrong.

Standard library alone: it runs before anything is installed.
"""

import argparse
import difflib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from importlib import metadata, util
from pathlib import Path
from typing import Any

from gpu_report import Check, Result, read_table, read_tests, report

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "gpu_check"  # ignored by git
PYTHON = (3, 12)  # for which --wheels downloads
OLDEST_TORCH = (2, 8)  # as in pyproject.toml
OF_THE_SYSTEM = re.compile(r"(torch|triton|pytorch-triton|nvidia-.*)", re.IGNORECASE)  # packages that are there already
SOURCE_ONLY = ("antlr4-python3-runtime",)  # pure Python, of which there is no wheel: it is built
BUILD_KERNELS = "rmc_rl/agents/cores/kernels/cpu/build.py"
MARKER = "pytest.mark.cuda"
TWO_PROCESSES = "two_processes"  # part of the names of tests that need two GPUs

# prints what torch finds, as JSON
PROBE = """
import importlib, json, torch
found = dict(torch=torch.__version__, cuda=torch.version.cuda, cards=[], cudnn=None, triton=None, error=None)
try:
    found["triton"] = importlib.import_module("triton").__version__
except ImportError:
    pass
if torch.version.cuda and torch.cuda.is_available():
    found["cudnn"] = torch.backends.cudnn.version()
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        found["cards"].append([card.name, f"{card.major}.{card.minor}", card.total_memory])
    try:
        torch.ones(8, device="cuda").add(1).sum().item()
    except RuntimeError as error:
        found["error"] = str(error).strip().splitlines()[0]
print(json.dumps(found))
"""


class Mistake(Exception):
    """Why the checks cannot run here, in one line."""


def checks(quick: bool = False) -> list[Check]:
    """
    All checks, in the order in which they run.

    :param quick: with small tables, to see that they run
    """
    marked = [f"tests/{path.name}" for path in sorted((ROOT / "tests").glob("test_*.py")) if MARKER in path.read_text()]
    sizes = {
        "cores": "--rounds 1 --steps 16 --cores rmc lstm" if quick else "--rounds 3",
        "envs": "--rounds 1 --copies 1024 --worlds rmc_rl/Copy-v0 rmc_rl/TMaze-v0"
        if quick
        else "--rounds 3 --copies 1024 65536",
        "training": "--rounds 1 --worlds copy256" if quick else "--rounds 3 --worlds aligned geometric pong copy256 copy4096",
    }
    cores, worlds, training = (
        (f"scripts/benchmark_{name}.py", "--device", "cuda", *options.split()) for name, options in sizes.items()
    )
    test = ("-m", "pytest", "-q", "-p", "no:cacheprovider")
    only_marked = (*test, "-m", "cuda", *marked, "-k")
    return [
        Check("cuda", "Tests that need a CUDA device", (*only_marked, f"not {TWO_PROCESSES}"), True),
        Check("triton", "Triton kernels against eager torch", (*test, "tests/test_triton.py"), True, "test_equals_eager"),
        Check(
            "kernels",
            "C++ kernels against eager torch, on the processor of this machine",
            (*test, "tests/test_kernels.py", "tests/test_kernel_library.py"),
            is_tests=True,
            must_pass="test_kernels",
        ),
        Check(
            "nccl",
            "Two processes train by NCCL what one process trains",
            (*only_marked, TWO_PROCESSES),
            is_tests=True,
            must_pass=TWO_PROCESSES,
            gpus=2,
        ),
        Check("cores", "Cores, forward and backward", cores, minutes=60),
        Check("acting", "Cores, one step without gradients", (*cores, "--acting"), minutes=60),
        Check("worlds", "Worlds", worlds),
        Check("training", "Training, against sb3-contrib's class", training, minutes=60),
    ]


# The folder of wheels


def requirements(constraints: str, python: tuple[int, int]) -> list[str]:
    """
    What is installed beside the PyTorch that is there already.

    :param constraints: the text of constraints.txt
    :param python: the version of Python that decides which lines count; pip asks the Python that it runs in itself
    :return: ``name==version`` of each line that counts
    :raises Mistake: for a line of another form
    """
    found = []
    for line in constraints.splitlines():
        line = line.partition("#")[0].strip()
        if not line:
            continue
        form = re.fullmatch(r"([\w.-]+)==([\w.+!-]+)(?:\s*;\s*python_version\s*(>=|<)\s*\"3\.(\d+)\")?", line)
        if form is None:
            raise Mistake(f"a line of constraints.txt must be name==version, with a python_version or without, got '{line}'")
        name, version, compared, minor = form.groups()
        counts = compared is None or (python >= (3, int(minor))) == (compared == ">=")
        if counts and not OF_THE_SYSTEM.fullmatch(name):
            found.append(f"{name}=={version}")
    return found


def wanted(python: tuple[int, int]) -> list[str]:
    """The requirements of this checkout for a version of Python."""
    return requirements((ROOT / "constraints.txt").read_text(encoding="utf-8"), python)


def wheel_commands(folder: Path, python: tuple[int, int]) -> list[list[str]]:
    """
    The commands that fill a folder of wheels.

    :param folder: the folder
    :param python: the version of Python on the machine with the GPU
    """
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    needed = wanted(python)
    sources = [each for each in needed if each.partition("==")[0] in SOURCE_ONLY]
    of_python = ["--python-version", ".".join(map(str, python)), "--only-binary=:all:"]
    download = [*pip, "download", "--no-deps", *of_python, "--dest", str(folder)]
    return [
        [*download, *(each for each in needed if each not in sources)],
        [*pip, "wheel", "--no-deps", "--wheel-dir", str(folder), *sources],
    ]


def fill(folder: Path, python: tuple[int, int]) -> None:
    """
    Download the wheels into a folder.

    :raises Mistake: if pip fails
    """
    folder.mkdir(parents=True, exist_ok=True)
    for command in wheel_commands(folder, python):
        run_pip(command, f"pip could not fill '{folder}'")
    wheels = list(folder.glob("*.whl"))
    megabytes = sum(wheel.stat().st_size for wheel in wheels) / 1e6
    print(f"{len(wheels)} wheels for Python {python[0]}.{python[1]}, {megabytes:,.0f} MB, in {folder}")


def check_wheels(folder: Path, python: tuple[int, int]) -> None:
    """
    Check that a folder has wheels, and that they are for a version of Python.

    :raises Mistake: if not
    """
    names = [path.name for path in folder.glob("*.whl")]
    if not names:
        fix = "fill it on a machine with a network: scripts/gpu_check --wheels"
        raise Mistake(f"the folder of wheels must have wheels, got none in '{folder}'; {fix}")
    # wheels of one version of Python only: cp312-cp312, unlike py3-none and cp39-abi3
    versions = Counter(match[1] for name in names if (match := re.search(r"-cp3(\d+)-cp3\1-", name)))
    if versions and str(python[1]) not in versions:
        of_wheels = f"3.{versions.most_common(1)[0][0]}"
        rule = f"the wheels in '{folder}' need Python {of_wheels}"
        raise Mistake(
            f"{rule}, got {python[0]}.{python[1]}; set PYTHON, or fill anew: scripts/gpu_check --wheels --python ..."
        )


def run_pip(command: Sequence[str], what: str) -> None:
    """
    Run pip.

    :raises Mistake: if it fails, with its last error
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise Mistake(f"{what}: {lines[-1] if lines else f'status {done.returncode}'}")


# The machine


def torch_version() -> str:
    """
    The version of the PyTorch of this Python.

    :raises Mistake: if it is missing or too old
    """
    oldest = ".".join(map(str, OLDEST_TORCH))
    try:
        version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        raise Mistake(f"torch must be installed, {oldest} or newer, got none in {sys.executable}; set PYTHON") from None
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None or tuple(map(int, numbers.groups())) < OLDEST_TORCH:
        raise Mistake(f"torch must be {oldest} or newer, got {version} in {sys.executable}")
    return version


def probe() -> dict[str, Any]:
    """
    The machine as torch sees it, in a process of its own.

    :raises Mistake: if torch cannot be imported, or there is no CUDA GPU that it can compute on
    """
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=False)
    try:
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise Mistake(f"torch must import and find its devices: {lines[-1]}") from None
    found["driver"] = driver()
    if not found["cuda"]:
        raise Mistake(f"there must be a CUDA GPU and a PyTorch for it, got torch {found['torch']}, built without CUDA")
    if not found["cards"]:
        raise Mistake(f"there must be a CUDA GPU, torch {found['torch']} finds none (driver: {found['driver']})")
    if found["error"]:
        raise Mistake(f"torch {found['torch']} must compute on {found['cards'][0][0]}: {found['error']}")
    return found


def driver() -> str:
    """The version of NVIDIA's driver."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else "unknown"


def commit() -> str:
    """The commit of the checkout, and whether files were changed since."""
    git = ["git", "-C", str(ROOT)]
    try:
        found = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=False)
    except OSError:
        return "unknown"
    if found.returncode:
        return "unknown"
    return found.stdout.strip() + (", with changed files" if changed.stdout.strip() else "")


# The environment


def environment_commands(wheels: Path, venv: Path) -> list[list[str]]:
    """The commands that make the virtual environment. The package itself is not installed: ``PYTHONPATH`` names it."""
    python = str(venv / "bin" / "python")
    install = [python, "-m", "pip", "--quiet", "--disable-pip-version-check", "install", "--no-index", "--no-deps"]
    return [
        [sys.executable, "-m", "venv", "--clear", "--system-site-packages", str(venv)],
        [*install, "--find-links", str(wheels), *wanted(sys.version_info[:2])],
    ]


def make_environment(wheels: Path, venv: Path) -> str:
    """
    Make the virtual environment, unless it is there already.

    :return: its interpreter
    :raises Mistake: if the wheels cannot be installed
    """
    make, install = environment_commands(wheels, venv)
    python, stamp = venv / "bin" / "python", venv / "installed"
    content = "\n".join([sys.version, sys.prefix, *install])
    if stamp.exists() and stamp.read_text(encoding="utf-8") == content:
        return str(python)
    print(f"installing into {venv} (once)", flush=True)
    done = subprocess.run(make, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stdout + done.stderr).strip().splitlines() or ["nothing was printed"]
        raise Mistake(f"{sys.executable} -m venv must make an environment with pip: {lines[-1]}")
    if sys.prefix != sys.base_prefix and (torch := util.find_spec("torch")) is not None and torch.origin is not None:
        # this Python is of a virtual environment itself, whose packages the new one would not see
        (site,) = venv.glob("lib/python3.*/site-packages")
        (site / "torch_of_the_system.pth").write_text(f"{Path(torch.origin).parent.parent}\n", encoding="utf-8")
    run_pip(install, f"the wheels in '{wheels}' must be those of constraints.txt; fill anew: scripts/gpu_check --wheels; pip")
    stamp.write_text(content, encoding="utf-8")
    return str(python)


def build_kernels(python: str) -> str:
    """Build the C++ kernels: one line about it."""
    done = subprocess.run([python, BUILD_KERNELS], cwd=ROOT, capture_output=True, text=True, check=False)
    return "built" if done.returncode == 0 else f"not built: {done.stderr.strip().splitlines()[0]}"


# One check


def run(check: Check, python: str, out: Path) -> Result:
    """
    Run a check.

    :param check: the check
    :param python: the interpreter
    :param out: the folder for what it prints
    """
    variables = {name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET", "PYTEST_ADDOPTS")}
    variables["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command, results = [python, *check.command], out / f"{check.name}.xml"
    if check.is_tests:
        command += ["--junitxml", str(results)]
    began, printed, errors = time.monotonic(), out / f"{check.name}.txt", out / f"{check.name}.err"
    with (
        printed.open("w") as stdout,
        errors.open("w") as stderr,
        # a group of processes of its own, so that all of them end with it
        subprocess.Popen(command, cwd=ROOT, env=variables, stdout=stdout, stderr=stderr, start_new_session=True) as process,
    ):
        try:
            status: int | None = process.wait(check.minutes * 60)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    if not errors.stat().st_size:
        errors.unlink()
    result = read_tests(check, results) if check.is_tests else read_table(check, printed.read_text(encoding="utf-8"))
    result.seconds = time.monotonic() - began
    if status != 0:
        result.outcome = "failed"
        last = (errors.read_text(encoding="utf-8").strip() if errors.exists() else "").splitlines()[-1:]
        ended = f"it was ended after {check.minutes} minutes" if status is None else f"it ended with status {status}"
        result.notes.append(": ".join([ended, *last]))
    return result


# The command line


def chosen(names: Sequence[str] | None, every: Sequence[Check]) -> list[Check]:
    """
    Some of the checks.

    :param names: their names; None: all
    :param every: all checks
    :raises Mistake: for an unknown name
    """
    known = [check.name for check in every]
    for name in names or ():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise Mistake(
                f"unknown check '{name}'; " + (f"did you mean '{near[0]}'?" if near else f"valid: {', '.join(known)}")
            )
    return [check for check in every if names is None or check.name in names]


def version_of(text: str) -> tuple[int, int]:
    """
    A version of Python.

    :raises Mistake: unless it is one, as in 3.12
    """
    found = re.fullmatch(r"3\.(\d+)", text)
    if found is None or int(found[1]) < 10:
        raise Mistake(f"python must be a version of at least 3.10, as in 3.12, got '{text}'")
    return 3, int(found[1])


def plan(arguments: argparse.Namespace, wanted_checks: Sequence[Check], venv: Path) -> list[str]:
    """The commands that would run."""
    if arguments.wheels is not None:
        return [shlex.join(command) for command in wheel_commands(Path(arguments.wheels), version_of(arguments.python))]
    python = sys.executable if arguments.here else str(venv / "bin" / "python")
    making = [] if arguments.here else environment_commands(Path(arguments.wheels_from), venv)
    commands = [*making, [python, BUILD_KERNELS], *([python, *check.command] for check in wanted_checks)]
    return [shlex.join(command) for command in commands]


def why_not(check: Check, cards: int, kernels: str) -> str | None:
    """
    Why a check is not run on this machine; None if it is.

    :param check: the check
    :param cards: the number of GPUs
    :param kernels: what :func:`build_kernels` returned
    """
    if cards < check.gpus:
        return f"{cards} GPU: not run, it needs {check.gpus}"
    if check.name == "kernels" and "there is no C++ compiler" in kernels:
        return f"C++ kernels {kernels}"
    return None


def check_gpu(arguments: argparse.Namespace, wanted_checks: Sequence[Check], venv: Path) -> int:
    """
    Run the checks and write the report.

    :return: the exit status
    :raises Mistake: if they cannot run here
    """
    torch_version()
    found = probe()
    python = sys.executable
    if not arguments.here:
        check_wheels(Path(arguments.wheels_from), sys.version_info[:2])
        python = make_environment(Path(arguments.wheels_from).resolve(), venv)
    out = Path(arguments.out or BUILD / time.strftime("report-%Y%m%d-%H%M%S")).resolve()
    out.mkdir(parents=True, exist_ok=True)
    about = {
        "C++ kernels": build_kernels(python),
        "Python": sys.version.split()[0],
        "commit": commit(),
        "command": "scripts/gpu_check " + shlex.join(sys.argv[1:]),
        "started": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
    }
    results: list[Result] = []
    for check in wanted_checks:
        (out / "report.md").write_text(report(found, about, results, wanted_checks), encoding="utf-8")
        print(f"{check.name} ...", end=" ", flush=True)
        reason = why_not(check, len(found["cards"]), about["C++ kernels"])
        result = run(check, python, out) if reason is None else Result(check, "not run", notes=[reason])
        results.append(result)
        what = result.notes[0] if result.outcome == "not run" else f"{result.outcome} in {result.seconds:,.0f} s"
        counts = f"{result.passed} passed, {result.failed} failed, {result.skipped} skipped"
        print(what if result.outcome == "not run" else f"{what}: {counts}", flush=True)
    (out / "report.md").write_text(report(found, about, results, wanted_checks), encoding="utf-8")
    print(f"report: {out / 'report.md'}")
    return int(any(result.outcome == "failed" for result in results))


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/gpu_check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ", ".join(check.name for check in checks())
    wheels = BUILD / "wheels"
    parser.add_argument("--only", nargs="+", metavar="CHECK", help=f"of {names}; default: all")
    parser.add_argument("--quick", action="store_true", help="small tables, to see that they run")
    parser.add_argument("--out", metavar="FOLDER", help="of the report; default: build/gpu_check/report-<time>")
    parser.add_argument(
        "--from", dest="wheels_from", default=str(wheels), metavar="FOLDER", help="of wheels; default: build/gpu_check/wheels"
    )
    parser.add_argument("--here", action="store_true", help="use this Python as it is, without an environment and wheels")
    parser.add_argument("--plan", action="store_true", help="print the commands instead of running them")
    parser.add_argument(
        "--wheels", nargs="?", const=str(wheels), metavar="FOLDER", help="only fill a folder of wheels, by pip, from a network"
    )
    parser.add_argument(
        "--python", default=".".join(map(str, PYTHON)), help="for --wheels: version on the machine with the GPU"
    )
    arguments = parser.parse_args()
    venv = BUILD / "venv"
    try:
        wanted_checks = chosen(arguments.only, checks(arguments.quick))
        if arguments.plan:
            print("\n".join(plan(arguments, wanted_checks, venv)))
            return 0
        if arguments.wheels is not None:
            fill(Path(arguments.wheels), version_of(arguments.python))
            return 0
        return check_gpu(arguments, wanted_checks, venv)
    except Mistake as mistake:
        print(f"error: {' '.join(str(mistake).split())}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
