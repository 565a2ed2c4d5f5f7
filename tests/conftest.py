"""What all tests share."""

import importlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for processes that tests start
# whoever runs the tests in the background of a script has Ctrl-C ignored, and so have all processes that tests start
signal.signal(signal.SIGINT, signal.default_int_handler)
# the key that signs runs: not that of the user who runs the tests
os.environ.setdefault("XDG_STATE_HOME", tempfile.mkdtemp(prefix="rmc-rl-tests-"))
torch.set_num_threads(1)  # the networks here are small: threads would only wait for each other


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked ``cuda`` where there are too few devices: one, or as many as ``cuda(devices=2)`` says."""
    for item in items:
        for marker in item.iter_markers("cuda"):
            needed = marker.kwargs.get("devices", 1)
            if torch.cuda.device_count() < needed:
                item.add_marker(pytest.mark.skip(reason=f"needs {needed} CUDA device{'s' if needed > 1 else ''}"))


@pytest.fixture
def python(tmp_path):
    """Run Python in a process of its own, in an empty folder."""

    def run(*arguments: str, timeout: float = 300) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=timeout, check=False
        )

    return run


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The folder of the checkout."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def script(checkout) -> Iterator[Callable[[str], ModuleType]]:
    """Import a script by its name, as in ``script("ladder")``; what it imports beside itself is found, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(checkout / "scripts"))
        yield importlib.import_module


@pytest.fixture
def call(monkeypatch, tmp_path, capsys):
    """Call a verb, as the command line does, in an empty folder: exit status, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def run(verb, *arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [f"{verb.__name__}.py", *map(str, arguments)])
        status = 0
        try:
            verb.main()
        except SystemExit as end:
            status = end.code
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run
