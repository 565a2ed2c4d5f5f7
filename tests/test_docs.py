"""The README and the pages of docs/: their code runs, their command lines are accepted, and the site builds."""

import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rmc_rl.__main__ import VERBS
from rmc_rl.agents.cores import registry

ROOT = Path(__file__).parent.parent
# not among the packages for development: a block that imports a missing one is skipped. scripts/check_drop_in runs rl-zoo3.md
OPTIONAL = ("rl_zoo3", "ray", "wandb", "mlflow", "moviepy")
RUN_ELSEWHERE = ("docs/exporting.md", "docs/sharing.md")  # they need a run: tests/test_export.py and tests/test_share.py
FOUND = (path for pages in ("*.md", "studies/*.md") for path in (ROOT / "docs").glob(pages))
PAGES = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in FOUND)]


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def missing(block):
    """The optional packages that a block imports and that are not installed."""
    imported = set(re.findall(r"^(?:import|from) (\w+)", block, re.MULTILINE))
    return [name for name in OPTIONAL if name in imported and importlib.util.find_spec(name) is None]


def of(language):
    return [page for page in PAGES if blocks(page, language)]


@pytest.mark.parametrize("page", [page for page in of("python") if page not in RUN_ELSEWHERE])
def test_python_blocks_run(page, tmp_path, monkeypatch):
    runnable = [block for block in blocks(page, "python") if not missing(block)]
    if not runnable:
        pytest.skip(f"needs {missing(blocks(page, 'python')[0])}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))  # a block may write a module, as a user would
    monkeypatch.setattr(registry, "_CORES", dict(registry._CORES))  # a block may register a core
    names = {"__name__": "page"}
    for block in runnable:
        if module := re.match(r"# (\w+\.py)\n", block):
            (tmp_path / module[1]).write_text(block)  # another block may import it
        exec(compile(block, page, "exec"), names)


@pytest.mark.parametrize("page", of("bash"))
def test_command_lines_are_accepted(page, monkeypatch, capsys):
    for line in re.findall(r"^scripts/(?:train|rmc|evaluate) .*", "\n".join(blocks(page, "bash")), re.MULTILINE):
        script, *words = shlex.split(line, comments=True)
        verb = words.pop(0) if script.endswith("rmc") else script.removeprefix("scripts/")
        assert verb in VERBS, line
        arguments = [word.replace("<folder>", "folder") for word in words if word != "-m"]
        arguments = [re.sub(r"=([^,{}\[\]]+),.*", r"=\1", argument) for argument in arguments]  # of a sweep, the first run
        # modules that a page writes in a Python block do not exist here
        arguments = [re.sub(r"^(core|env)=\w+:[\w-]+$", "", argument) for argument in arguments]
        arguments = [argument for argument in arguments if argument and not argument.startswith("core.width")]
        monkeypatch.setattr(sys, "argv", ["verb", *arguments, "--cfg", "job"])
        importlib.import_module(f"rmc_rl.{verb}").main()
        assert yaml.safe_load(capsys.readouterr().out), line


def test_there_are_code_and_command_lines():
    assert len(blocks("README.md", "python")) >= 3
    assert len(re.findall(r"^scripts/", "\n".join(blocks("README.md", "bash")), re.MULTILINE)) >= 5


def test_the_site_builds_without_a_warning(checkout, tmp_path):
    pytest.importorskip("sphinx")
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "-q", "-b", "html"]
    built = subprocess.run(
        [*command, str(checkout / "docs"), str(tmp_path)], capture_output=True, text=True, timeout=600, check=False
    )
    assert built.returncode == 0, built.stdout + built.stderr
    assert (tmp_path / "_generated" / "memories" / "rmc.html").exists()
    assert "<math" in (tmp_path / "_generated" / "memories" / "rmc.html").read_text()
