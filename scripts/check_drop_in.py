"""
Trains ``rmc_rl.RecurrentPPO`` inside other projects: python scripts/check_drop_in.py [zoo] [docs] [popgym] [pettingzoo]

``scripts/check_drop_in`` installs these projects and runs this file. One line per check: "ok", "FAILED", or "missing" for an
environment that is not installed. The status is 0 if nothing failed.

* zoo: each entry of rl-zoo3's ``ppo_lstm.yml``. The model is built as the entry says; then it trains one short rollout. The
  small tasks train for some thousand steps with the settings of their entry.
* docs: the code of ``docs/rl-zoo3.md``.
* popgym: two rollouts in every Easy environment, with an LSTM and with an RMC.
* pettingzoo: two rollouts in multi-agent environments that SuperSuit vectorises.
"""

import argparse
import importlib
import os
import re
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import gymnasium
import torch
import yaml
from gymnasium.error import Error
from gymnasium.wrappers import FlattenObservation
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

import rmc_rl

ALGORITHM = "ppo_lstm"  # the name of recurrent PPO in rl-zoo3
TRAINED = {"CartPoleNoVel-v1": 4096, "PendulumNoVel-v1": 4096, "MountainCarNoVel-v0": 4096, "Acrobot-v1": 4096}  # steps
SHORT = dict(n_steps=16, batch_size=64, n_epochs=1)  # a rollout of the other entries
ATARI = "ALE/Pong-v5"  # stands for rl-zoo3's entry "atari"
MULTI_AGENT: dict[str, dict[str, int]] = {  # module: arguments of its environment
    "mpe2.simple_spread_v3": {},
    "mpe2.simple_speaker_listener_v4": {},
    "pettingzoo.butterfly.pistonball_v6": dict(n_pistons=5, max_cycles=40),
}
PAGE = Path(__file__).parents[1] / "docs" / "rl-zoo3.md"

Check = tuple[str, Callable[[], str]]  # its name, and a function that returns what it did


class MissingError(Exception):
    """An environment is not installed."""


def zoo_checks() -> Iterator[Check]:
    """A check for each entry of rl-zoo3's settings."""
    rl_zoo3 = importlib.import_module("rl_zoo3")
    importlib.import_module("rl_zoo3.import_envs")
    rl_zoo3.ALGOS[ALGORITHM] = rmc_rl.RecurrentPPO
    entries = yaml.safe_load((Path(str(rl_zoo3.__file__)).parent / "hyperparams" / f"{ALGORITHM}.yml").read_text())
    for entry in entries:
        if entry != "default":  # names a policy without memory
            yield entry, partial(zoo, ATARI if entry == "atari" else entry)


def zoo(env_id: str) -> str:
    """Build a model as rl-zoo3 does, train it, and load what was saved."""
    try:
        gymnasium.make(env_id).close()
    except (Error, ImportError) as error:
        raise MissingError(str(error).splitlines()[0]) from error
    with tempfile.TemporaryDirectory() as folder:
        manager, model = experiment(env_id, folder, {})
        built = type(model)
        if built is not rmc_rl.RecurrentPPO:
            raise TypeError(f"rl-zoo3 built a {built}")
        manager.n_timesteps = TRAINED.get(env_id)
        if manager.n_timesteps is None:
            model.env.close()
            manager, model = experiment(env_id, folder, SHORT)
            manager.n_timesteps = 2 * SHORT["n_steps"] * model.n_envs
        manager.learn(model)
        manager.save_trained_model(model)
        model.env.close()
        loaded = rmc_rl.RecurrentPPO.load(Path(manager.save_path) / f"{manager.env_name}.zip", device="cpu")
    return f"built; trained {loaded.num_timesteps:,} steps; saved and loaded"


def experiment(env_id: str, folder: str, settings: dict[str, int]) -> tuple[Any, Any]:
    """
    An experiment of rl-zoo3.

    :param env_id: the environment
    :param folder: where it is saved
    :param settings: they replace those of its entry
    :return: rl-zoo3's ``ExperimentManager``, and the model that it built
    """
    kwargs = dict(n_timesteps=1, eval_freq=-1, log_interval=-1, hyperparams=settings, verbose=0, device="cpu")
    module = importlib.import_module("rl_zoo3.exp_manager")
    manager = module.ExperimentManager(argparse.Namespace(), ALGORITHM, env_id, folder, **kwargs)
    model, _ = manager.setup_experiment()
    return manager, model


def docs_checks() -> Iterator[Check]:
    """A check of the page about rl-zoo3."""
    yield PAGE.name, docs


def docs() -> str:
    """Write the files of the page, whose first line is a comment with their name, and run its commands."""
    blocks = re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    with tempfile.TemporaryDirectory() as folder:
        files = [(text.split()[1], text) for language, text in blocks if language != "sh"]
        for name, text in files:
            (Path(folder) / name).write_text(text)
        commands = [text for language, text in blocks if language == "sh" and "pip install" not in text]
        for command in commands:
            ran = subprocess.run(["bash", "-ec", command], cwd=folder, capture_output=True, text=True, check=False)
            if ran.returncode != 0:
                raise RuntimeError(f"{command.strip()}\n{ran.stdout[-2000:]}{ran.stderr[-2000:]}")
    return f"{len(files)} files written, {len(commands)} blocks of commands run"


def popgym_checks() -> Iterator[Check]:
    """A check for each Easy environment of POPGym."""
    importlib.import_module("popgym")
    for env_id in sorted(name for name in gymnasium.registry if name.startswith("popgym-") and "Easy" in name):
        yield env_id, partial(popgym, env_id)


def popgym(env_id: str) -> str:
    """Train an LSTM and an RMC in copies of an environment."""
    done = "trained 2 rollouts each with an LSTM and an RMC"
    is_tuple = isinstance(gymnasium.make(env_id).observation_space, gymnasium.spaces.Tuple)  # which SB3 does not support
    for policy in ("MlpLstmPolicy", "MlpMemoryPolicy"):
        train(policy, make_vec_env(env_id, 4, wrapper_class=FlattenObservation if is_tuple else None), n_steps=64)
    return f"{done}, its Tuple observations through FlattenObservation" if is_tuple else done


def train(policy: str, env: VecEnv, n_steps: int) -> None:
    """Two rollouts and their updates."""
    rollout = n_steps * env.num_envs
    model = rmc_rl.RecurrentPPO(policy, env, n_steps=n_steps, batch_size=rollout // 2, n_epochs=2, device="cpu")
    model.learn(2 * rollout)
    env.close()


def pettingzoo_checks() -> Iterator[Check]:
    """A check for each multi-agent environment."""
    for name in MULTI_AGENT:
        yield name, partial(pettingzoo, name)


def pettingzoo(name: str) -> str:
    """Train one policy for all agents of an environment, in two copies of it."""
    try:
        supersuit, module = importlib.import_module("supersuit"), importlib.import_module(name)
    except ImportError as error:
        raise MissingError(str(error)) from error
    env = supersuit.pad_action_space_v0(supersuit.pad_observations_v0(module.parallel_env(**MULTI_AGENT[name])))
    image = len(env.observation_space(env.possible_agents[0]).shape) == 3
    if image:
        env = supersuit.frame_stack_v1(supersuit.resize_v1(supersuit.color_reduction_v0(env, mode="B"), 84, 84), 3)
    env = supersuit.pettingzoo_env_to_vec_env_v1(env)
    env = supersuit.concat_vec_envs_v1(env, 2, num_cpus=1, base_class="stable_baselines3")
    agents = env.num_envs
    train("CnnLstmPolicy" if image else "MlpLstmPolicy", env, n_steps=64)
    return f"trained 2 rollouts of {agents} agents"


CHECKS = dict(zoo=zoo_checks, docs=docs_checks, popgym=popgym_checks, pettingzoo=pettingzoo_checks)


def run(name: str, check: Callable[[], str], report: TextIO) -> bool:
    """
    Run a check.

    :param name: its name
    :param check: returns what it did
    :param report: where its line is printed
    :return: whether it did not fail
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcome = f"ok       {name}: {check()}"
    except MissingError as error:
        outcome = f"missing  {name}: {error}"
    except Exception:
        outcome = f"FAILED   {name}: {traceback.format_exc()}"
    print(outcome, file=report, flush=True)
    return not outcome.startswith("FAILED")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", default=list(CHECKS), metavar="kind", help=", ".join(CHECKS))
    kinds = parser.parse_args().kinds
    unknown = [kind for kind in kinds if kind not in CHECKS]
    if unknown:
        parser.error(f"unknown check {unknown[0]}; valid: {', '.join(CHECKS)}")
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame without a screen
    torch.set_num_threads(1)
    with os.fdopen(os.dup(1), "w") as report:  # simulators written in C print to the standard output
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        passed = [run(f"{kind} {name}", check, report) for kind in kinds for name, check in CHECKS[kind]()]
        print(f"{passed.count(False)} of {len(passed)} checks failed", file=report)
    sys.exit(0 if all(passed) else 1)


if __name__ == "__main__":
    main()
