"""The package as it is installed, its YAML files, and the tables of the README."""

import inspect
import subprocess
import sys
import zipfile

import gymnasium
import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

import rmc_rl
from rmc_rl.__main__ import VERBS
from rmc_rl.agents.cores import core_class, core_names
from rmc_rl.command_line.agent import ALGORITHMS
from rmc_rl.command_line.schema import TrainKeys, check_keys
from rmc_rl.envs import WORLDS

FAMILIES = ["atari", "control", "gymnasium", "minatar", "minigrid", "pendulum", "recall", "rmc_rl"]
FAMILY_CORES = {("minigrid", "rmc"): dict(first_gates="uniform")}  # keys of a core that differ in a family


def test_the_wheel_holds_one_package_with_its_yaml_files(checkout, tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(checkout)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"rmc_rl", f"rmc_rl-{rmc_rl.__version__}.dist-info"}
    in_checkout = {
        str(path.relative_to(checkout)) for path in (checkout / "rmc_rl").rglob("*") if path.suffix in (".yaml", ".py", ".gz")
    }
    assert in_checkout | {"rmc_rl/py.typed"} <= set(names)


@pytest.mark.parametrize("name", ["agents", "envs", "configs"])
def test_the_links_at_the_top(checkout, name):
    link = checkout / name
    assert link.is_symlink()
    assert link.resolve() == checkout / "rmc_rl" / name


def test_importing_registers_the_worlds():
    assert set(WORLDS) <= set(gymnasium.registry)
    assert set(rmc_rl.__all__) <= set(dir(rmc_rl))


def test_every_yaml_file_is_used(checkout):
    configs = checkout / "rmc_rl" / "configs"
    found = {str(path.relative_to(configs)) for path in configs.rglob("*.yaml")}
    cores, families = (
        {f"{group}/{name}.yaml" for name in names} for group, names in (("core", core_names()), ("family", FAMILIES))
    )
    algorithms = {f"algo/{name}.yaml" for name in ALGORITHMS}
    # what tune searches, of every core and of the families that need it
    spaces = {"tune/space.yaml", *(f"tune/core/{name}.yaml" for name in core_names())}
    spaces |= {f"tune/{name}" for name in families if f"tune/{name}" in found}
    both = {f"family_core/{family}_{core}.yaml" for family, core in FAMILY_CORES}
    assert found == {"common.yaml", *(f"{verb}.yaml" for verb in VERBS)} | cores | families | both | algorithms | spaces


@pytest.mark.parametrize("core", core_names())
@pytest.mark.parametrize("family", FAMILIES)
def test_configurations_compose_and_agree_with_the_code(core, family):
    with initialize_config_module("rmc_rl.configs", version_base="1.3"):
        config = compose("train", overrides=[f"core={core}", f"family={family}"])
    check_keys(TrainKeys, config)
    defaults = {name: p.default for name, p in inspect.signature(core_class(core)).parameters.items() if name != "input_size"}
    lists = {name: list(value) if isinstance(value, tuple) else value for name, value in defaults.items()}
    assert OmegaConf.to_container(config.core) == dict(name=core) | lists | FAMILY_CORES.get((family, core), {})


def readme(checkout):
    return (checkout / "README.md").read_text()


def test_readme_names_every_core_and_world(checkout):
    text = readme(checkout)
    for name in (*core_names(), *WORLDS):
        assert f"`{name}`" in text, name


def test_changelog_has_this_version(checkout):
    assert f"## {rmc_rl.__version__}" in (checkout / "CHANGELOG.md").read_text()


def test_the_page_of_memories_has_the_table_of_cores(checkout):
    printed = subprocess.run(
        [sys.executable, str(checkout / "scripts" / "cores.py")], capture_output=True, text=True, check=True, timeout=120
    ).stdout
    assert printed in (checkout / "docs" / "memories.md").read_text()
