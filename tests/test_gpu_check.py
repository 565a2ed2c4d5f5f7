"""scripts/gpu_check, as far as it goes without a GPU: wheels, plans, results of tests and tables, the report, and refusals."""

import importlib
import os
import subprocess
import sys

import pytest

FOUND = dict(
    torch="2.8.0", cuda="12.8", cudnn=91002, triton="3.4.0", driver="570.1", error=None, cards=[["H100", "9.0", 80 * 10**9]]
)


@pytest.fixture(name="gpu")
def import_script(script):
    return script("gpu_check")


@pytest.fixture(name="called")
def call_script(gpu, monkeypatch, capsys, tmp_path):
    """Call the script: exit status, standard output, standard error."""
    monkeypatch.setattr(gpu, "BUILD", tmp_path / "build")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["gpu_check.py", *map(str, arguments)])
        status = gpu.main()
        return (status, *capsys.readouterr())

    return run


def one_line(status, out, err):
    assert status == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


# Wheels


def test_requirements_are_the_pins_without_what_the_machine_has(gpu, checkout):
    found = gpu.requirements((checkout / "constraints.txt").read_text(), (3, 12))
    names = [each.partition("==")[0].lower() for each in found]
    assert len(names) == len(set(names)) > 100  # a package with a pin for older versions of Python is there once
    assert {"numpy", "stable_baselines3", "sb3_contrib", "gymnasium", "ale-py", "hydra-core", "pytest"} <= set(names)
    assert not [name for name in names if name in ("torch", "triton") or name.startswith("nvidia")]


def test_lines_count_for_the_python_of_the_other_machine(gpu):
    text = """
    # a comment
    torch==2.13.0
    nvidia-nccl-cu12==2.27.3
    torchmetrics==1.0
    numpy==2.2.6; python_version < "3.11"
    numpy==2.4.6; python_version >= "3.11"  # newer
    """
    assert gpu.requirements(text, (3, 12)) == ["torchmetrics==1.0", "numpy==2.4.6"]
    assert gpu.requirements(text, (3, 10)) == ["torchmetrics==1.0", "numpy==2.2.6"]
    with pytest.raises(gpu.Mistake, match=r"must be name==version, .* got 'numpy>=2'"):
        gpu.requirements("numpy>=2", (3, 12))


def test_a_package_without_wheels_is_built(gpu, tmp_path):
    download, build = gpu.wheel_commands(tmp_path, (3, 12))
    assert download[download.index("--python-version") + 1] == "3.12"
    assert {"--only-binary=:all:", "--no-deps"} <= set(download)
    assert [each.partition("==")[0] for each in build if "==" in each] == list(gpu.SOURCE_ONLY)
    assert not [each for each in download if each.startswith(gpu.SOURCE_ONLY)]


def test_wheels_of_another_python_are_refused(gpu, tmp_path):
    with pytest.raises(gpu.Mistake, match="must have wheels, got none"):
        gpu.check_wheels(tmp_path, (3, 12))
    for name in ("numpy-2.4.6-cp312-cp312-manylinux.whl", "six-1-py2.py3-none-any.whl", "hf_xet-1-cp39-abi3-linux.whl"):
        (tmp_path / name).touch()
    gpu.check_wheels(tmp_path, (3, 12))
    with pytest.raises(gpu.Mistake, match=r"need Python 3\.12, got 3\.11"):
        gpu.check_wheels(tmp_path, (3, 11))


# Plans and refusals


def test_the_plan_names_every_check_once(called, gpu, checkout):
    status, out, err = called("--plan")
    lines = out.splitlines()
    assert (status, err) == (0, "")
    assert "--system-site-packages" in lines[0]
    assert "--no-index" in lines[1]
    assert lines[2].endswith("kernels/cpu/build.py")
    assert len(lines) == 3 + len(gpu.checks())
    for check in gpu.checks():
        paths = [word for word in check.command if word.endswith(".py")]
        assert paths
        assert all((checkout / path).exists() for path in paths)
    (marked,) = (check.command for check in gpu.checks() if check.name == "cuda")
    assert {"tests/test_cores.py", "tests/test_devices.py", "tests/test_ppo.py", "tests/test_worlds.py"} <= set(marked)


def test_options_change_the_plan(called):
    _, out, _ = called("--plan", "--here", "--quick", "--only", "triton", "worlds")
    _, triton, worlds = out.splitlines()
    assert triton.split()[0] == sys.executable
    assert triton.endswith("tests/test_triton.py")
    assert "--rounds 1" in worlds
    _, out, _ = called("--plan", "--wheels", "there", "--python", "3.13")
    assert all("--python-version 3.13" in line or " wheel " in line for line in out.splitlines())


def test_benchmarks_accept_the_arguments_of_both_plans(gpu, monkeypatch):
    for check in [*gpu.checks(), *gpu.checks(quick=True)]:
        if not check.is_tests:
            monkeypatch.setattr(sys, "argv", [*check.command, "--help"])  # the arguments before it are checked
            with pytest.raises(SystemExit) as end:
                importlib.import_module(check.command[0].removeprefix("scripts/").removesuffix(".py")).main()
            assert end.value.code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "tritn"], "unknown check 'tritn'; did you mean 'triton'?"),
        (["--only", "xyz"], "unknown check 'xyz'; valid: cuda, triton, kernels, nccl"),
        (["--wheels", "there", "--python", "2.7"], "python must be a version of at least 3.10, as in 3.12, got '2.7'"),
    ],
)
def test_mistakes_get_one_line(called, arguments, message):
    assert message in one_line(*called(*arguments))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (dict(cuda=None), "got torch 2.8.0, built without CUDA"),
        (dict(cards=[]), "there must be a CUDA GPU, torch 2.8.0 finds none (driver: unknown)"),
        (dict(error="no kernel image is available"), "torch 2.8.0 must compute on H100: no kernel image is available"),
        ({}, "the folder of wheels must have wheels, got none"),
    ],
)
def test_a_machine_that_cannot_check_gets_one_line(called, gpu, monkeypatch, changed, message, tmp_path):
    monkeypatch.setattr(gpu, "PROBE", f"import json; print(json.dumps({FOUND | changed}))")
    monkeypatch.setattr(gpu, "driver", lambda: "unknown")
    assert message in one_line(*called("--from", tmp_path / "empty"))


def test_a_torch_that_is_missing_too_old_or_broken_gets_one_line(called, gpu, monkeypatch):
    monkeypatch.setattr(gpu, "PROBE", "import not_there")
    assert "torch must import and find its devices: ModuleNotFoundError" in one_line(*called())
    monkeypatch.setattr(gpu.metadata, "version", lambda _: "2.7.1+cu126")
    assert "torch must be 2.8 or newer, got 2.7.1+cu126" in one_line(*called())

    def missing(name):
        raise gpu.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(gpu.metadata, "version", missing)
    assert "torch must be installed, 2.8 or newer, got none" in one_line(*called())


def test_a_python_that_is_too_old_gets_one_line(checkout, tmp_path):
    old = tmp_path / "python"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.8.1 && exit 0\nexit 1\n')
    old.chmod(0o755)
    command = [str(checkout / "scripts" / "gpu_check")]
    done = subprocess.run(command, env={**os.environ, "PYTHON": str(old)}, capture_output=True, text=True, check=False)
    assert "needs Python 3.10 or newer, got" in one_line(done.returncode, done.stdout, done.stderr)
    assert "Python 3.8.1" in done.stderr


@pytest.mark.skipif("__import__('torch').cuda.is_available()", reason="there is a GPU")
def test_without_a_gpu_it_says_so(checkout):
    command = [str(checkout / "scripts" / "gpu_check"), "--here"]
    done = subprocess.run(
        command, env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True, check=False, timeout=120
    )
    assert "there must be a CUDA GPU" in one_line(done.returncode, done.stdout, done.stderr)


# Results and the report

TESTS = """
import pytest

def test_good_one(): pass
def test_good_two(): pass
def test_bad(): assert 1 == 2, "not equal"
@pytest.mark.skip(reason="needs 2 CUDA devices")
def test_skipped(): pass
@pytest.fixture
def broken(): raise RuntimeError("no device")
def test_error(broken): pass
"""


def of(gpu, tests, tmp_path, must_pass=""):
    (tmp_path / "test_mine.py").write_text(tests)
    command = ("-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path / "test_mine.py"))
    return gpu.run(gpu.Check("mine", "Mine", command, True, must_pass), sys.executable, tmp_path)


def test_results_of_pytest_are_counted(gpu, tmp_path):
    result = of(gpu, TESTS, tmp_path)
    assert (result.outcome, result.passed, result.failed, result.skipped) == ("failed", 2, 2, 1)
    notes = "\n".join(result.notes)
    assert "test_mine::test_bad`: AssertionError: not equal" in notes
    assert "no device" in notes
    assert "1 skipped: needs 2 CUDA devices" in notes
    assert "it ended with status 1" in notes
    assert "2 passed" in (tmp_path / "mine.txt").read_text()


def test_a_check_needs_a_test_that_has_passed(gpu, tmp_path):
    good = "def test_good(): pass"
    assert of(gpu, good, tmp_path).outcome == "passed"
    assert of(gpu, good, tmp_path, "equals_eager").notes == ["no test of `equals_eager` has passed"]
    assert of(gpu, good, tmp_path, "equals_eager").outcome == "failed"
    assert of(gpu, "import pytest\n@pytest.mark.skip\ndef test_skipped(): pass", tmp_path).outcome == "failed"
    assert of(gpu, "import nowhere_at_all", tmp_path).outcome == "failed"
    (tmp_path / "mine.xml").unlink()
    assert gpu.read_tests(gpu.Check("mine", "", ()), tmp_path / "mine.xml").outcome == "failed"


def test_a_table_needs_rows_and_a_status_of_zero(gpu, tmp_path):
    def of_script(code, minutes=1.0):
        return gpu.run(gpu.Check("mine", "Mine", ("-c", code), minutes=minutes), sys.executable, tmp_path)

    table = "print('about\\n\\n| a | b |\\n| --- | --- |\\n| 1 | 2 |\\n| 3 | |')"
    result = of_script(table)
    assert (result.outcome, result.passed) == ("passed", 2)
    assert "| 1 | 2 |" in result.table
    assert not (tmp_path / "mine.err").exists()
    assert of_script("print('| a |\\n| --- |')").notes == ["it has printed no row of a table"]
    result = of_script(f"{table}; raise SystemExit('error: out of memory')")
    assert (result.outcome, result.passed) == ("failed", 2)
    assert result.notes == ["it ended with status 1: error: out of memory"]
    result = of_script(f"{table}; import time; time.sleep(60)", minutes=0.05)
    assert result.outcome == "failed"
    assert "it was ended after" in result.notes[-1]


def test_a_second_gpu_and_a_compiler_are_needed_where_they_are(gpu):
    checks = {check.name: check for check in gpu.checks()}
    assert gpu.why_not(checks["nccl"], 1, "built") == "1 GPU: not run, it needs 2"
    assert gpu.why_not(checks["nccl"], 2, "built") is None
    assert "no C++ compiler" in gpu.why_not(checks["kernels"], 1, "not built: v4 could not be built: there is no C++ compiler")
    assert gpu.why_not(checks["kernels"], 1, "not built: an error") is None


def test_the_report_names_card_versions_commit_and_each_check(called, gpu, monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "PROBE", f"import json; print(json.dumps({FOUND}))")
    monkeypatch.setattr(gpu, "build_kernels", lambda _: "built")
    (tmp_path / "test_mine.py").write_text(TESTS)
    tests = ("-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path / "test_mine.py"))
    table = gpu.Check("table", "A table", ("-c", "print('| a |\\n| --- |\\n| 7 |')"))
    checks = [gpu.Check("tests", "Tests", tests, True), table, gpu.Check("two", "Two", (), gpus=2)]
    monkeypatch.setattr(gpu, "checks", lambda _=False: checks)
    status, out, _ = called("--here", "--out", tmp_path / "out")
    assert status == 1
    assert "tests ... failed in" in out
    assert "two ... 1 GPU: not run, it needs 2" in out
    text = (tmp_path / "out" / "report.md").read_text()
    assert text.startswith("# GPU check: H100\n")
    assert "| card | 1 x H100, compute capability 9.0, 80 GB |" in text
    for name, value in (("driver", "570.1"), ("torch", "2.8.0"), ("CUDA of torch", "12.8"), ("Triton", "3.4.0")):
        assert f"| {name} | {value} |" in text or name == "driver"
    assert f"| commit | {gpu.commit()} |" in text
    assert "| tests: Tests | failed | 2 | 2 | 1 |" in text
    assert "| table: A table | passed | 1 | 0 | 0 |" in text
    assert "| two: Two | not run |" in text
    assert "| 7 |" in text
    status, _, _ = called("--here", "--only", "table", "--out", tmp_path / "out")
    assert status == 0
    unfinished = gpu.report(FOUND, {}, [], checks)
    assert unfinished.count("not reached") == 3
