"""Which kernel is used, and what happens if none is available."""

import warnings

import pytest
import torch
from kernel_cases import NEEDED, assert_same, clear_caches, data, make, needs_native, results

from rmc_rl.agents.cores import make_core
from rmc_rl.agents.cores.kernels import dispatch
from rmc_rl.agents.cores.kernels.cpu import build, calling, library
from rmc_rl.errors import UsageError


@pytest.fixture(name="lost")
def make_lost(monkeypatch, tmp_path):
    """No library, as in a wheel that was built without a compiler."""
    monkeypatch.setattr(build, "library", lambda name: tmp_path / f"native-{name}.so")
    clear_caches()
    yield tmp_path
    clear_caches()


@pytest.mark.usefixtures("lost")
def test_without_a_library_one_warning_and_the_same_results():
    core = make("rmc usual")
    arrays = data(core, "rmc usual")
    expected = results(core, "eager", *arrays)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(results(core, "auto", *arrays), expected, 0)
    with pytest.warns(UserWarning, match=r"kernel=native is unavailable: .* was not built .*Eager torch computes"):
        assert_same(results(core, "native", *arrays), expected, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(results(core, "native", *arrays), expected, 0)
    assert "not built" in dispatch.report("auto", "rmc", "cpu")


def test_a_library_that_cannot_be_loaded(lost):
    for name in build.instruction_sets():
        (lost / f"native-{name}.so").write_bytes(b"not a library")
    core = make("rmc usual")
    arrays = data(core, "rmc usual")
    expected = results(core, "eager", *arrays)
    with pytest.warns(UserWarning, match="computing with eager torch: native-.* cannot be loaded"):
        assert_same(results(core, "auto", *arrays), expected, 0)


@needs_native
@pytest.mark.skipif(len(library.usable()) < 2, reason="this CPU has one instruction set")
def test_the_next_library_where_the_best_cannot_be_loaded(request):
    best, good = (build.library(name) for name in library.usable()[:2])
    lost = request.getfixturevalue("lost")
    (lost / best.name).write_bytes(b"not a library")
    (lost / good.name).symlink_to(good)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert dispatch.report("native", "rmc", "cpu") == f"native (C++, {good.name})"


@needs_native
def test_a_library_of_other_sources_is_noticed(monkeypatch, request):
    found = {name: build.library(name) for name in build.instruction_sets()}
    request.getfixturevalue("lost")
    monkeypatch.setattr(build, "library", found.__getitem__)
    monkeypatch.setattr(build, "checksum", lambda: "another")
    with pytest.warns(UserWarning, match=r"built from other sources than those beside it \(python -m rmc_rl\.agents\.cores"):
        assert dispatch.fused("auto", "rmc", "cpu") is None
    assert "other sources" in dispatch.report("auto", "rmc", "cpu")


def test_without_a_compiler_nothing_is_built(lost, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert set(build.build()) == set(build.instruction_sets())
    assert not list(lost.iterdir())


@pytest.mark.parametrize("name", ["rmc", "lstm", "gru", "rims", "brims"])
def test_an_unknown_kernel_is_refused(name):
    with pytest.raises(UsageError, match="unknown kernel 'natve'; did you mean 'native'"):
        make_core(name, 6, dict(kernel="natve"))


def test_reports():
    assert dispatch.report("eager", "rmc", "cpu") == "eager (as requested)"
    assert dispatch.report("auto", "rmc", "mps") == "eager (there is no native kernel for mps)"
    assert dispatch.report("native", "rnn", "cuda") == "eager (there is no native kernel for cuda)"
    if NEEDED is None:
        assert dispatch.report("auto", "rmc", "cpu").startswith("native (C++, native-")


def test_a_torch_without_its_openmp_library_leaves_threads_to_the_kernel(monkeypatch, tmp_path):
    monkeypatch.setattr(torch, "__file__", str(tmp_path / "__init__.py"))
    calling._parallel.cache_clear()
    try:
        assert calling._parallel() is None
    finally:
        calling._parallel.cache_clear()
