"""
Builds the C++ kernels: python -m rmc_rl.agents.cores.kernels.cpu.build.

An installation from source does it by itself where there is a compiler (``hatch_build.py``). It takes seconds: the sources
need neither torch nor Python, and one library serves all versions of both. On x86-64 there is one library for each of three
levels of the instruction set (x86-64 psABI, section 3.1.1); which one a process loads is decided when it loads it.

Standard library alone: the package cannot be imported where it is built.
"""

import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FOLDER = Path(__file__).parent
SOURCES = FOLDER / "src"
FLAGS = (
    *("-std=c++17", "-O3", "-fPIC", "-shared", "-pthread", "-fvisibility=hidden", "-Wall", "-Wextra"),
    *("-fno-math-errno", "-fno-trapping-math"),  # nobody asks for floating-point exceptions: loops become vectors
)
# name of an instruction set -> the compiler's flags for it, best first
X86_64 = {
    "v4": ("-march=x86-64-v4", "-mprefer-vector-width=512"),
    "v3": ("-march=x86-64-v3",),
    "v1": (),
}


def instruction_sets() -> dict[str, tuple[str, ...]]:
    """Name -> flags of the instruction sets that are built on this machine's architecture."""
    return X86_64 if platform.machine().lower() in ("x86_64", "amd64") else {platform.machine().lower(): ()}


def checksum() -> str:
    """Of what a library is built from, this file included. Empty where the sources were not installed."""
    digest = hashlib.sha256()
    sources = sorted([*SOURCES.glob("*.h"), *SOURCES.glob("*.cpp")])
    for source in [*sources, Path(__file__)]:
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()[:16] if sources else ""


def library(name: str) -> Path:
    """
    Where the library of an instruction set lies.

    :param name: the instruction set
    """
    return FOLDER / f"native-{name}.so"


def compiler() -> list[str] | None:
    """The command of the C++ compiler: ``CXX``, else the first of the usual names that is there; None: there is none."""
    if os.environ.get("CXX"):
        return shlex.split(os.environ["CXX"])
    return next(([name] for name in ("g++", "c++", "clang++") if shutil.which(name)), None)


def build() -> dict[str, str]:
    """
    Build the library of each instruction set, where there is none of these sources yet.

    :return: name of an instruction set without a library of these sources -> why it could not be built
    """
    command, source = compiler(), checksum()
    old = [name for name in instruction_sets() if not _is_of(library(name), source)]
    if command is None:
        return dict.fromkeys(old, "there is no C++ compiler (g++, c++, clang++ or CXX)")
    with ThreadPoolExecutor() as pool:
        reasons = dict(zip(old, pool.map(functools.partial(_build, command, source), old), strict=True))
    return {name: reason for name, reason in reasons.items() if reason is not None}


def _is_of(path: Path, source: str) -> bool:
    return path.exists() and source.encode() in path.read_bytes()


def _build(command: list[str], source: str, name: str) -> str | None:
    try:
        with tempfile.TemporaryDirectory(dir=FOLDER, prefix=".build-") as folder:
            made = Path(folder) / "native.so"
            flags = [*FLAGS, *instruction_sets()[name], f'-DRMC_RL_SOURCES="{source}"']
            arguments = [*command, *flags, *map(str, sorted(SOURCES.glob("*.cpp"))), "-o", str(made)]
            run = subprocess.run(arguments, capture_output=True, text=True, check=False)
            if run.returncode != 0:
                return run.stderr.strip()
            os.replace(made, library(name))  # at once: a process may have the old one open
    except OSError as error:
        return str(error)
    return None


def main() -> int:
    """Build, and say what went wrong."""
    failures = build()
    for name, reason in failures.items():
        sys.stderr.write(f"{library(name).name} could not be built: {reason}\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
