"""The command line as a person meets it: runs, mistakes, help, Ctrl-C."""

import csv
import json
import re
import signal
import subprocess
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
import yaml
from gymnasium import spaces
from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.logger import configure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import rmc_rl.__main__
from rmc_rl import __version__, evaluate, train
from rmc_rl.agents.cores import registry
from rmc_rl.agents.sequences import SequenceBuffer
from rmc_rl.agents.stock import StockRecurrentPPO
from rmc_rl.command_line import agent, progress, schema, signals
from rmc_rl.runs.folder import Run, save_model
from rmc_rl.studies.statistics import summarise

COPY = ["env_kwargs.n_symbols=4", "env_kwargs.length=3", "env_kwargs.delay=5", "device=cpu"]
TINY = [
    *COPY,
    "num_threads=1",
    "n_envs=4",
    "algo.n_steps=22",
    "algo.batch_size=44",
    "algo.n_epochs=1",
    "core.num_heads=2",
    "core.head_size=4",
]


def only_run(core="rmc", env="rmc_rl-Copy-v0") -> Run:
    (path,) = Path("runs", env, core).iterdir()
    return Run.open(path)


def test_a_run_and_its_evaluation(call):
    status, out, err = call(train, *TINY, "total_timesteps=1000", "checkpoint_every=300", "seed=3")
    assert status == 0, err
    run = only_run()
    assert run.path.name.endswith("-seed3")
    assert f"run: {run.path}" in out
    assert "num_slots: 4" in out  # the resolved configuration
    assert re.search(r"parameters: [\d,]+ \(core [\d,]+, action_net", out)
    assert "return=" in err  # the progress bar

    config = run.read_config()
    assert config.env_kwargs == dict(n_symbols=4, length=3, delay=5)
    assert config.n_envs == 4
    assert config.run.versions.torch
    assert {path.name for path in (run.path / "checkpoints").iterdir()} == {"968", "1056"}
    assert not list(run.path.rglob("*.partial"))
    with open(run.path / "progress.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    assert rows[-1]["rollout/ep_rew_mean"]
    events = EventAccumulator(str(run.path)).Reload()
    assert {"rollout/ep_rew_mean", "rollout/ep_len_mean", "train/loss", "train/approx_kl", "time/fps"} <= set(
        events.Tags()["scalars"]
    )
    assert {"core/forget_gate", "core/input_gate", "core/attention_entropy"} <= set(events.Tags()["scalars"])
    assert "config/text_summary" in events.Tags()["tensors"]
    assert RecurrentPPO.load(run.model_path("last")).num_timesteps == 1056
    RecurrentPPO.load(run.model_path("best"))

    status, out, err = call(evaluate, f"run={run.path}", "episodes=20", "env_kwargs.delay=3")
    assert status == 0, err
    assert re.search(r"return: mean \d\.\d+, standard deviation \d\.\d+, 95 % interval \[\d\.\d+, \d\.\d+\]", out)
    assert "length: mean 9.000, standard deviation 0.000" in out
    (path,) = (run.path / "evaluations").glob("*.json")
    assert str(path) in out
    result = json.loads(path.read_text())
    assert result["env_kwargs"] == dict(n_symbols=4, length=3, delay=3)
    assert len(result["return"]["each"]) == result["episodes"] == 20
    assert result["return"]["mean"] == pytest.approx(np.mean(result["return"]["each"]))
    status, _, _ = call(evaluate, f"run={run.path}", "model=best", "episodes=3")
    assert status == 0


def test_what_evaluating_depends_on(call):
    assert call(train, *TINY, "total_timesteps=88")[0] == 0
    run = only_run()
    returns = []
    for arguments in (["seed=1"], ["seed=1"], ["seed=2"], ["seed=1", "deterministic=false"]):
        assert call(evaluate, f"run={run.path}", "episodes=40", "n_envs=3", *arguments)[0] == 0
    for path in sorted((run.path / "evaluations").glob("*.json"), key=lambda path: path.stat().st_mtime_ns):
        returns.append(json.loads(path.read_text())["return"]["each"])
    assert len(returns) == 4  # none overwrites another, even in the same second
    assert returns[0] == returns[1]
    assert returns[0] != returns[2]
    assert returns[0] != returns[3]


def test_the_best_model_is_the_one_with_the_highest_mean_return(tmp_path):
    config = train_config(total_timesteps=88)
    model = agent.make_model(config, agent.make_env(config))
    run = Run.create(tmp_path, "env", "core", 0)
    model.set_logger(configure(str(tmp_path), []))
    callback = progress.RunCallback(run, config)
    callback.init_callback(model)
    saved = []
    for steps, mean, episodes in ((1, 0.9, 3), (2, 0.2, 50), (3, 0.3, 100), (4, 0.2, 100), (5, 0.7, 100), (6, 0.6, 100)):
        model.ep_info_buffer = deque([{"r": mean}] * episodes, maxlen=100)
        callback.num_timesteps = model.num_timesteps = steps
        callback.on_rollout_end()
        saved.append(RecurrentPPO.load(run.model_path("best")).num_timesteps)
    assert saved == [1, 2, 3, 3, 5, 5]


def train_config(**keys):
    with initialize_config_module("rmc_rl.configs", version_base="1.3"):
        lines = [*(f"++{line}" for line in TINY), *(f"{key}={value}" for key, value in keys.items())]
        return schema.check_keys(schema.TrainKeys, compose("train", overrides=lines))


@pytest.mark.parametrize(
    ("space", "policy"),
    [
        (spaces.Box(0, 255, (84, 84, 3), np.uint8), "CnnMemoryPolicy"),
        (spaces.Box(0, 255, (1, 36, 40), np.uint8), "CnnMemoryPolicy"),
        (spaces.Box(0, 255, (7, 7, 3), np.uint8), "MlpMemoryPolicy"),
        (spaces.Box(-1, 1, (84, 84, 3), np.float32), "MlpMemoryPolicy"),
        (spaces.Discrete(3), "MlpMemoryPolicy"),
        (spaces.Dict(a=spaces.Discrete(3)), "MultiInputMemoryPolicy"),
    ],
    ids=str,
)
def test_the_policy_follows_from_the_observations(space, policy):
    assert agent.choose_policy(space).__name__ == policy


class Picture(gymnasium.Env):
    """Random pictures with their channels last."""

    observation_space, action_space = spaces.Box(0, 255, (40, 48, 3), np.uint8), spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.time += 1
        return self.observation_space.sample(), 0.0, self.time == 5, False, {}


def test_pictures_with_channels_last(call):
    gymnasium.register("Picture-v0", Picture)
    try:
        arguments = [
            "env=Picture-v0",
            "core=memoryless",
            "n_envs=2",
            "algo.n_steps=8",
            "algo.batch_size=8",
            "total_timesteps=16",
        ]
        assert call(train, *arguments)[0] == 0
        status, _, err = call(evaluate, f"run={only_run('memoryless', 'Picture-v0').path}", "episodes=2")
        assert status == 0, err
    finally:
        del gymnasium.registry["Picture-v0"]


def test_the_same_seed_gives_the_same_numbers(call):
    for seed in (1, 1, 2):
        assert call(train, *TINY, "total_timesteps=300", f"seed={seed}")[0] == 0
    runs = sorted(Path("runs/rmc_rl-Copy-v0/rmc").iterdir())
    assert len(runs) == 3
    weights = [RecurrentPPO.load(run / "model.zip").policy.state_dict() for run in runs]
    by_seed = {run.name.split("seed")[1]: weight for run, weight in zip(runs, weights, strict=True)}
    one, other = (weight for run, weight in zip(runs, weights, strict=True) if "seed1" in run.name)
    assert all(one[name].equal(other[name]) for name in one)
    assert not all(one[name].equal(by_seed["2"][name]) for name in one)


@pytest.mark.parametrize("algo", ["ppo", "stock"])
def test_atari_by_its_id(call, algo):
    arguments = ["env=ALE/Pong-v5", "core=memoryless", "n_envs=2", "algo.n_steps=32", "algo.batch_size=32", "device=cpu"]
    status, out, err = call(train, *arguments, "total_timesteps=64", "algo.n_epochs=1", f"algo={algo}")
    assert status == 0, err
    assert "learning_rate: 0.00025" in out  # Atari's own default
    model = RecurrentPPO.load(only_run("memoryless", "ALE-Pong-v5").model_path())
    assert model.observation_space.shape == (1, 84, 84)  # no frame stack
    assert type(model.policy).__name__ == "CnnMemoryPolicy"


def test_the_stock_algorithm(call, monkeypatch):
    made = []
    for name in ("ppo", "stock"):
        algorithm = agent.ALGORITHMS[name]
        monkeypatch.setitem(
            agent.ALGORITHMS, name, lambda *a, algorithm=algorithm, **k: made.append(algorithm) or algorithm(*a, **k)
        )
        schedules = ["algo.learning_rate_schedule=linear", "algo.ent_coef_schedule=linear", "algo.ent_coef=0.2"]
        status, _, err = call(train, *TINY, "total_timesteps=176", f"algo={name}", *schedules, "algo.learning_rate=0.1")
        assert status == 0, err
    assert made == [rmc_rl.RecurrentPPO, StockRecurrentPPO]
    weights = []
    for path in Path("runs", "rmc_rl-Copy-v0", "rmc").iterdir():
        with open(path / "progress.csv") as file:
            rows = [row for row in csv.DictReader(file) if row["train/learning_rate"]]
        rates = [float(row["train/learning_rate"]) for row in rows]
        weights += [float(row["train/ent_coef"]) for row in rows if "train/ent_coef" in row]
        assert rates == [pytest.approx(0.05)]  # after the first of two updates; the second's is 0 and not yet written
    assert weights == [pytest.approx(0.1)]  # the stock class has no schedule for it
    status, _, err = call(train, "algo=stock", "algo.sequence_length=8")
    assert (status, err.startswith("error: unknown key of algo 'sequence_length'")) == (2, True)


def test_numbers_as_people_write_them(call):
    assert call(train, *TINY, "total_timesteps=1e2", "checkpoint_every=1e5")[0] == 0
    assert only_run().read_config().total_timesteps == 100


def test_threads(call):
    before = torch.get_num_threads()
    try:
        assert call(train, *TINY, "total_timesteps=88", "num_threads=2")[0] == 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_any_gymnasium_id(call):
    arguments = ["env=CartPole-v1", "core=memoryless", "n_envs=2", "algo.n_steps=16", "algo.batch_size=16"]
    status, out, err = call(train, *arguments, "total_timesteps=64", "policy.critic=separate", "policy.net_arch=[8]")
    assert status == 0, err
    assert "critic_core" in out


def test_a_sweep(call):
    status, _, err = call(
        train,
        "-m",
        "seed=1,2",
        "core=rmc,memoryless",
        *COPY,
        "n_envs=4",
        "algo.n_steps=22",
        "algo.batch_size=44",
        "total_timesteps=88",
    )
    assert status == 0, err
    assert len(list(Path("runs/rmc_rl-Copy-v0/rmc").iterdir())) == 2
    assert len(list(Path("runs/rmc_rl-Copy-v0/memoryless").iterdir())) == 2


MISTAKES = {
    "env=ALE/Pon-v5": "unknown env 'ALE/Pon-v5'; did you mean 'ALE/Pong-v5'?",
    "core=rcm": "unknown core 'rcm'; did you mean 'rmc'?",
    "algo.nsteps=3": "unknown key of algo 'nsteps'; did you mean 'n_steps'?",
    "n_env=3": "unknown key 'n_env'; did you mean 'n_envs'?",
    "core.width=3": "unknown key of core 'width'; valid: first_gates, forget_bias, gate_style",
    "core.num_slots=0": "num_slots must be a whole number of at least 1, got 0",
    "core.gate_style=units": "unknown gate_style 'units'; did you mean 'unit'?",
    "policy.critic=share": "unknown critic 'share'; did you mean 'shared'?",
    "policy.net_arch=64": "policy.net_arch must be null, sizes of layers as [64, 64], or {pi: [64], vf: [64]}, got 64",
    "policy.encoder=64": "policy.encoder must be a list or null, as in [64], got 64",
    "algo.gamma=1.5": "gamma must be a finite number at least 0 and at most 1, got 1.5",
    "algo.learning_rate=0": "algo.learning_rate must be a finite number above 0, got 0",
    "algo.batch_size=0": "batch_size must be a whole number of at least 1, got 0",
    "algo.batch_size=many": "algo.batch_size must be a whole number or null, got 'many'",
    "algo.n_steps=0": "n_steps must be a whole number of at least 1, got 0",
    "algo.target_kl=-1": "target_kl must be a finite number at least 0, got -1",
    "algo=3": "unknown algo '3'; valid: imitation, ppo, stock",
    "algo.name=sac": "unknown algo.name 'sac'; valid: imitation, ppo, stock",
    "algo.ent_coef_schedule=cosine": "unknown algo.ent_coef_schedule 'cosine'; valid: constant, linear",
    "algo.learning_rate_schedule=cosine": "unknown algo.learning_rate_schedule 'cosine'; valid: constant, linear",
    "algo.sequence_length=0": "sequence_length must be a whole number of at least 1, got 0",
    "n_envs=many": "n_envs must be a whole number of at least 1, got 'many'",
    "total_timesteps=0": "total_timesteps must be a whole number of at least 1, got 0",
    "params=0": "params must be a whole number of at least 1, got 0",
    "params=100": "params must be at least",
    "core.name=nowhere:core": "the module of core 'nowhere:core' must be one that can be imported",
    "seed=-1": "seed must be a whole number of at least 0, got -1",
    "processes=yes_please": "processes must be true or false, got 'yes_please'",
    "device=cuda:99": "device must be one this machine has (auto, cpu",
    "env_device=moon": "env_device must be one this machine has (auto, cpu",
    "env_kwargs.dealy=3": "unknown keyword of rmc_rl/Copy-v0 'dealy'; did you mean 'delay'?",
    "env_kwargs.delay=0": "delay must be a whole number of at least 1, got 0",
    "env_kwargs=3": "env_kwargs must hold keys, as in env_kwargs.key=value, got 3",
    "seed=1,2": "seed must have one value; a sweep over several needs -m",
    "seed": "an argument must read key=value",
    "seed=3000000000": "seed must be at most 2147483647 less n_envs, got 3000000000",
    "algo.learning_rate=1e400": "algo.learning_rate must be a finite number, got inf",
    "algo.use_sde=true": "algo.use_sde needs Box actions, got Discrete(8)",
    "env=Blackjack-v1": "the observation space must be one of Box, Discrete, MultiDiscrete, MultiBinary, or a Dict",
    "runs_dir=null": "runs_dir must be text, got None",
    "runs_dir=/dev/null": "runs_dir must be a folder that can be written to, got '/dev/null'",
    "~core.name": "core must be a registered name or a subclass of Core, got None",
    "env=MyEnv-v0": "unknown env 'MyEnv-v0'; to import the module that registers it, write 'module:MyEnv-v0'",
    "delay=5": "unknown key 'delay'; did you mean 'env_kwargs.delay'?",
    "num_slots=5": "unknown key 'num_slots'; did you mean 'core.num_slots'?",
    "gamma=0.5": "unknown key 'gamma'; did you mean 'algo.gamma'?",
    "core=nowhere:core": "the module of core 'nowhere:core' must be one that can be imported",
    "normalize=obs": "normalize=obs needs Box observations that are no images, got Discrete(10)",
    "num_threads=3000": "num_threads must be at most ",
    "n_envs=1000000007": "a rollout of n_envs * algo.n_steps steps must fit into memory: cpu has ",
    "algo.n_steps=1000000000000": "a rollout of n_envs * algo.n_steps steps must fit into memory",
    "core.head_size=100000": "the policy of core rmc, its gradients and its optimizer must fit into memory",
    "core.head_size=1000000000": "the sizes of core rmc must be sizes that a tensor can have",
    "core.num_slots=100000000000000000000": "the sizes of core rmc must be sizes that a tensor can have",
    "runs_dir=~nobody_of_this_name/x": "runs_dir must be a folder that can be written to, got '~nobody_of_this_name/x'",
    "env_kwargs.delay=${nothing}": "Interpolation key 'nothing' not found",
    "seed=${seed}": "Recursive interpolation detected",
    "hydra.run.dir=/dev/null": "Hydra refused the command line: [Errno 17] File exists: '/dev/null'",
    "hydra.foo=5": "Could not override 'hydra.foo'.",
    "--resolve": "--resolve needs --cfg job",
    "--config-dir=nowhere": "--config-dir must be a folder, got 'nowhere'",
    "--config-name=nowhere": "Hydra refused the command line: Cannot find primary config 'nowhere'",
    "env=.:X": "env '.:X' names a module that cannot be imported",
    "--core": "unrecognized arguments: --core; --help-all lists the keys and flags",
    "algo.n_steps=[1": "an argument must read key=value",
    "env_kwargs.delay=[1,2": "an argument must read key=value, with brackets and quotes closed",
    "num_threads=0": "num_threads must be a whole number of at least 1, got 0",
}


@pytest.mark.parametrize("argument", MISTAKES)
def test_a_mistake_gets_one_line_and_status_2(call, argument):
    status, out, err = call(train, argument)
    assert status == 2
    assert out == ""
    assert err.startswith(f"error: {MISTAKES[argument]}")
    assert err.count("\n") == 1
    assert not Path("runs").exists()


def test_mistakes_in_lists_of_a_core(call):
    status, _, err = call(train, "core=brims", "core.num_active=[7,2]")
    assert (status, err) == (2, "error: num_active must be at most num_modules, 6, got 7\n")


def test_cores_of_the_same_size(call):
    arguments = [argument for argument in TINY if not argument.startswith("core.")]
    status, out, err = call(train, "-m", "core=rmc,lstm,rims", "params=40000", "total_timesteps=88", *arguments)
    assert status == 0, err
    assert len(out.splitlines()) == 6
    kept = "".join(path.read_text() for path in Path("runs/sweeps").glob("*/*/output.txt"))
    totals = [int(total.replace(",", "")) for total in re.findall(r"parameters: ([\d,]+) ", kept)]
    assert len(totals) == 3
    assert all(abs(total - 40000) <= 800 for total in totals), totals
    run = only_run("lstm")
    assert run.read_config().core.width == RecurrentPPO.load(run.model_path("last")).policy.core.output_size != 64


def test_a_core_of_ones_own_by_its_module(call, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_CORES", dict(registry._CORES))
    (tmp_path / "my_module.py").write_text(
        "from rmc_rl import register_core\n"
        "from rmc_rl.agents.cores import Memoryless\n"
        "@register_core('mine')\nclass Mine(Memoryless):\n    pass\n"
    )
    (tmp_path / "own" / "core").mkdir(parents=True)
    (tmp_path / "own" / "core" / "mine.yaml").write_text("name: my_module:mine\nwidth: 8\n")
    arguments = [argument for argument in TINY if not argument.startswith("core.")]
    status, _, err = call(train, f"--config-dir={tmp_path / 'own'}", "core=mine", "total_timesteps=88", *arguments)
    assert status == 0, err
    assert only_run("my_module-mine").read_config().core == dict(name="my_module:mine", width=8)


OWN = """
import gymnasium, numpy as np
from gymnasium import spaces
from rmc_rl import register_core
from rmc_rl.agents.cores import Memoryless

@register_core('mine')
class Mine(Memoryless):
    def __init__(self, input_size, width=8, scale=(1.0, 2.0)):
        super().__init__(input_size, width)

class Env(gymnasium.Env):
    observation_space, action_space = spaces.Box(-1, 1, (3,), np.float32), spaces.Discrete(2)
    total = 0
    def __init__(self, reward=1.0):
        self.reward = reward
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(3, np.float32), {}
    def step(self, action):
        Env.total += 1
        self.time += 1
        reward = float("nan") if self.reward < 0 and Env.total > 100 else 1.0
        return np.ones(3, np.float32), reward, self.time == 6, False, {}

gymnasium.register("Own-v0", Env)
"""
SMALL = ["n_envs=2", "algo.n_steps=16", "algo.batch_size=16", "total_timesteps=64", "device=cpu", "num_threads=1"]


@pytest.fixture(name="own_module")
def make_own_module(tmp_path, monkeypatch):
    """A module in the working directory, with a core and an environment."""
    monkeypatch.setattr(registry, "_CORES", dict(registry._CORES))
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(tmp_path))])
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    (tmp_path / "own.py").write_text(OWN)
    yield
    gymnasium.registry.pop("Own-v0", None)
    for name in [name for name in ConfigStore.instance().repo.get("core", {}) if name.startswith("own:")]:
        del ConfigStore.instance().repo["core"][name]


@pytest.mark.usefixtures("own_module")
def test_a_core_and_an_environment_of_the_working_directory_without_yaml(call):
    status, _, err = call(train, "env=own:Own-v0", "-m", "core=own:mine,memoryless", "core.width=4", *SMALL)
    assert status == 0, err
    assert only_run("own-mine", "own-Own-v0").read_config().core == dict(name="own:mine", width=4, scale=[1.0, 2.0])
    assert only_run("memoryless", "own-Own-v0").read_config().core == dict(name="memoryless", width=4)
    status, _, err = call(evaluate, f"run={only_run('own-mine', 'own-Own-v0').path}", "episodes=2")
    assert status == 0, err
    status, _, err = call(train, "env=own:Own-v0", "core=own:mine", "core.widht=4", *SMALL)
    assert (status, err) == (2, "error: unknown key of core 'widht'; did you mean 'width'?\n")
    status, _, err = call(train, "env=own:Own-v0", "core=own:mine", "core.width=-1", *SMALL)
    assert (status, err.startswith("error: width must be a whole number")) == (2, True)
    status, _, err = call(train, "env=own:Own-v0", "core=own:other", *SMALL)
    assert (status, err.startswith("error: unknown core of module own 'other'")) == (2, True)


@pytest.mark.usefixtures("own_module")
def test_a_keyword_of_the_wrong_type_gets_one_line(call):
    status, _, err = call(train, "env=own:Own-v0", "core=memoryless", "env_kwargs.reward=fast", *SMALL)
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith("error: env_kwargs must be values with which own:Own-v0 can be played, got TypeError: ")


@pytest.mark.usefixtures("own_module")
@pytest.mark.parametrize("algo", ["ppo", "stock"])
def test_a_number_that_is_not_finite_gets_one_line_and_status_3(call, algo):
    arguments = ["env=own:Own-v0", "core=memoryless", "env_kwargs.reward=-1", *SMALL, "total_timesteps=1000", f"algo={algo}"]
    status, out, err = call(train, *arguments)
    assert status == 3
    assert "error: the reward of environment" in err
    assert "Traceback" not in err
    weights = RecurrentPPO.load(only_run("memoryless", "own-Own-v0").model_path()).policy.state_dict()
    assert all(torch.isfinite(weight).all() for weight in weights.values())
    assert "next: " in out


@pytest.mark.parametrize("setting", ["gamma=1.5", "target_kl=-1", "batch_size=0", "max_grad_norm=0", "clip_range=-0.1"])
def test_the_stock_algorithm_checks_its_settings(call, setting):
    status, _, err = call(train, *TINY, "algo=stock", f"algo.{setting}")
    name, _, value = setting.partition("=")
    assert (status, err.count("\n")) == (2, 1)
    assert re.fullmatch(rf"error: {name} must be .*, got {value}(\.0)?\n", err)


def test_what_an_evaluation_cannot_hold_or_end_is_refused_in_one_line(call):
    assert call(train, *TINY, "total_timesteps=88")[0] == 0
    run, too_long = f"run={only_run().path}", "keywords of rmc_rl/Copy-v0 must make episodes of at most 100,000 steps, not of"
    for argument, message in {
        "env_kwargs.length=${seed}": f"{too_long} about 1,000,005",
        "env_kwargs.delay=[5,1000000000]": too_long,
        "env_kwargs.length=1000000000000": "num_envs, length must need at most 8 GiB of memory",
        "n_envs=1000000007": "the observations and states of n_envs copies must fit into memory: cpu has ",
    }.items():
        status, _, err = call(evaluate, run, argument, "episodes=1000000007")
        assert (status, err.count("\n")) == (2, 1), err
        assert err.startswith(f"error: {message}"), err


def test_more_processes_than_memory_holds_are_refused(call):
    status, _, err = call(train, "env=CartPole-v1", "core=gru", "processes=true", "n_envs=100000", "algo.n_steps=1")
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith("error: a process for each of the n_envs copies must fit into memory: cpu has ")


def test_normalisation_is_saved_with_the_models_and_used_by_evaluate(call):
    arguments = ["env=Pendulum-v1", "core=memoryless", "normalize=true", *SMALL, "total_timesteps=600", "checkpoint_every=300"]
    status, _, err = call(train, *arguments)
    assert status == 0, err
    run = only_run("memoryless", "Pendulum-v1")
    models = {path.relative_to(run.path).with_suffix("") for path in run.path.rglob("*.zip")}
    assert len(models) == 2
    assert models == {
        Path(str(p.relative_to(run.path)).removesuffix(".normalization.json")) for p in run.path.rglob("*.normalization.json")
    }
    status, out, err = call(evaluate, f"run={run.path}", "episodes=2")
    assert status == 0, err
    mean = float(re.search(r"return: mean (-?[\d.]+)", out)[1])
    assert mean < -100  # the environment's own rewards
    for path in run.path.glob("*.json"):
        path.write_text(path.read_text().replace("mean", "mode"))
    status, _, err = call(evaluate, f"run={run.path}", "episodes=2")
    assert (status, err.count("\n")) == (2, 1)


def test_each_job_of_a_sweep_records_its_own_command(call, monkeypatch):
    monkeypatch.setenv("FOLDER", "looked-up")
    arguments = [*(argument for argument in TINY if not argument.startswith("core.")), "total_timesteps=88"]
    status, _, err = call(train, "-m", "seed=1,2", "core=memoryless", "runs_dir=${oc.env:FOLDER}", *arguments)
    assert status == 0, err
    commands = [Run.open(path).read_config().run.command for path in Path("looked-up/rmc_rl-Copy-v0/memoryless").iterdir()]
    assert len(commands) == 2
    for command, seed in zip(sorted(commands), (1, 2), strict=True):
        assert command.startswith(f"python -m rmc_rl.train seed={seed} core=memoryless ")
        assert " env_kwargs.delay=5 " in command
        assert "looked-up" not in command
        assert str(Path.cwd()) not in command


def test_a_command_keeps_what_hydra_looks_up(call, monkeypatch):
    monkeypatch.setenv("FOLDER", "looked-up")
    assert call(train, *TINY, "total_timesteps=1", "runs_dir=${oc.env:FOLDER}")[0] == 0
    (path,) = Path("looked-up/rmc_rl-Copy-v0/rmc").iterdir()
    assert Run.open(path).read_config().run.command.endswith("'runs_dir=${oc.env:FOLDER}'")


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ("seed=range(0,1000000000)", "a sweep must have at most 10,000 jobs, got 1000000000"),
        ("seed=shuffle(range(0,1000000000))", "a sweep must have at most 10,000 jobs, got 1000000000"),
        ("algo.gamma=range(0.0,1.0,0.00000001)", "a sweep must have at most 10,000 jobs, got 100000000"),
        ("seed=interval(0,1)", "Can only enumerate CHOICE and RANGE sweeps"),
        ("hydra/sweeper=x", "In 'hydra/config': Could not find 'hydra/sweeper/x'"),
        ("seed=1,x", "seed must be a whole number of at least 0, got 'x'"),
    ],
)
def test_mistakes_in_a_sweep_are_found_before_it_begins(call, sweep, message):
    status, _, err = call(train, "-m", sweep)
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith(f"error: {message}")
    assert not list(Path().rglob("config.yaml"))


def test_hydras_help_is_shown_beside_overrides(call):
    status, out, _ = call(train, "--hydra-help", "seed=1")
    assert (status, "Hydra" in out) == (0, True)


def test_the_next_command_is_one_that_works_as_this_one_did(call, monkeypatch):
    _, out, _ = call(train, *TINY, "total_timesteps=1")
    run = only_run().path
    assert f"\nnext: python -m rmc_rl.evaluate run={run}\n" in out
    assert f"\nor:   python -m rmc_rl.evaluate -m run={run} env_kwargs.delay=5,10\n" in out
    assert "\nfor comparison: random play 0.25, without memory 0.25, perfect play 1\n" in out
    monkeypatch.setenv("RMC_RL_COMMAND", "my checkout/scripts/rmc")
    _, out, _ = call(train, *TINY, "total_timesteps=1", "runs_dir=other")
    assert "\nnext: 'my checkout/scripts/rmc' evaluate run=other/" in out
    assert re.search(r"\ntime: [\d.]+ seconds, [\d,]+ steps per second\n", out)


def test_all_verbs_from_one_command(call):
    status, out, _ = call(rmc_rl.__main__)
    assert (status, "train " in out, "evaluate " in out) == (0, True, True)
    status, _, err = call(rmc_rl.__main__, "trian")
    assert (status, err) == (2, "error: unknown verb 'trian'; did you mean 'train'?\n")
    status, out, _ = call(rmc_rl.__main__, "evaluate", "--help")
    assert (status, "episodes: 20" in out) == (0, True)


def test_ctrl_c_while_importing_is_no_traceback(tmp_path):
    code = "import signal, sys; sys.orig_argv = ['python', '-m', 'rmc_rl.train']; import rmc_rl; "
    code += "signal.raise_signal(signal.SIGINT)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")
    code = "import signal; import rmc_rl; assert signal.getsignal(signal.SIGINT) is signal.default_int_handler"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, timeout=120, check=True)


def test_a_key_of_one_core_in_a_sweep_over_two_is_a_mistake(call):
    status, _, err = call(train, "-m", "core=rmc,memoryless", "core.num_slots=2")
    assert (status, err) == (2, "error: unknown key of core 'num_slots'; valid: name, width\n")


def test_patterns_in_a_sweep(call):
    status, _, err = call(train, "-m", "core=glob(no*)")
    assert (status, err.startswith("error: a sweep must have at least one job")) == (2, True)
    status, _, err = call(
        train, "-m", "core=glob(m*)", *COPY, "n_envs=2", "algo.n_steps=22", "algo.batch_size=44", "total_timesteps=1"
    )
    assert status == 0, err
    assert {path.name for path in Path("runs/rmc_rl-Copy-v0").iterdir()} == {"memoryless", "mingru"}


def test_values_that_hydra_looks_up(call, monkeypatch):
    monkeypatch.setenv("GAME", "ALE/Pong-v5")
    status, out, err = call(train, "env=${oc.env:GAME}", "--cfg", "job")
    assert status == 0, err
    assert "clip_range: 0.1" in out


def test_a_folder_of_ones_own_configurations(call, tmp_path):
    (tmp_path / "conf" / "core").mkdir(parents=True)
    (tmp_path / "conf" / "core" / "mine.yaml").write_text("name: rmc\nnum_slots: 2\n")
    status, out, err = call(train, "--config-dir", "conf", "core=mine", "env=ALE/Pong-v5", "--cfg", "job")
    assert status == 0, err
    assert "clip_range: 0.1" in out
    assert "num_slots: 2" in out


def test_a_run_whose_path_means_something_to_hydra(call):
    assert call(train, *TINY, "total_timesteps=88", "runs_dir=my runs, (a=b)")[0] == 0
    (path,) = Path("my runs, (a=b)", "rmc_rl-Copy-v0", "rmc").iterdir()
    status, out, err = call(evaluate, f"run={path}", "episodes=2")
    assert status == 0, err
    assert str(path) in out


def test_a_sweep_over_two_families_is_a_mistake(call):
    status, _, err = call(train, "-m", "env=rmc_rl/Copy-v0,ALE/Pong-v5")
    assert (status, err.startswith("error: the environments of a sweep must be of one family")) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "run must be the folder of a run, as in run="),
        (["run=nowhere"], "run must be the folder of a run, a pattern as in"),
        (["run=old", "model=beste"], "unknown model 'beste'; did you mean 'best'?"),
        (["run=old"], "model must have been saved by the run, got 'last', and there is no "),
        (["episodes=0"], "episodes must be a whole number of at least 1, got 0"),
        (["run=3"], "run must be the folder of a run, a pattern as in"),
        (["run=old", "env_kwargs=3"], "env_kwargs must hold keys, as in env_kwargs.key=value, got 3"),
        (["run=foreign"], "a run's config.yaml must hold env, env_kwargs and core, got "),
        (["run=broken"], "a run's config.yaml must be YAML, got "),
        (["run=nozip"], "model must be a file that save has written, got "),
        (["deterministic=maybe"], "deterministic must be true, false or both, got 'maybe'"),
        (["episode=3"], "unknown key 'episode'; did you mean 'episodes'?"),
    ],
)
def test_mistakes_in_evaluating(call, arguments, message):
    good = "env: rmc_rl/Copy-v0\nenv_kwargs: {}\ncore: {name: rmc}\n"
    for folder, config in dict(old=good, foreign="a: 1\n", broken="a: [", nozip=good).items():
        Path(folder).mkdir()
        Path(folder, "config.yaml").write_text(config)
    for folder in ("foreign", "broken", "nozip"):
        Path(folder, "model.zip").write_text("no zip")
    status, _, err = call(evaluate, *arguments)
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith(f"error: {message}")


def test_evaluating_on_other_spaces_is_a_mistake(call):
    assert call(train, *TINY, "total_timesteps=88")[0] == 0
    status, _, err = call(evaluate, f"run={only_run().path}", "env_kwargs.n_symbols=5")
    assert status == 2
    assert err.startswith("error: env, env_kwargs and partial must leave the observation_space as it was in training")


def test_where_an_evaluation_cannot_be_written_it_is_not_played(call, monkeypatch):
    assert call(train, *TINY, "total_timesteps=88")[0] == 0
    run = only_run().path
    (run / "evaluations").write_text("a file where a folder should be")
    monkeypatch.setattr("rmc_rl.evaluate.evaluate_episodes", None)
    status, _, err = call(evaluate, f"run={run}")
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith("error: the folder of evaluations must be one that can be written to, got ")


@pytest.mark.parametrize("verb", [train, evaluate])
def test_help_tells_the_keys_and_what_they_mean(call, verb):
    status, out, _ = call(verb, "--help-all")
    assert status == 0
    assert "env_kwargs" in out
    assert "# last or best" in out or "# shared, separate or memoryless" in out
    assert "hydra:" not in out


def test_help_is_one_screen_and_says_where_the_rest_is(call):
    status, out, _ = call(train, "--help", "env=rmc_rl/TMaze-v0", "core=gru")
    assert (status, out.count("\n") < 40) == (0, True)
    assert "total_timesteps: 1000000" in out
    assert "core=gru (one of aft, " in out
    assert "env_kwargs of rmc_rl/TMaze-v0: length=" in out
    assert "--help-all" in out
    assert "gae_lambda" not in out


def test_help_follows_the_command_line(call):
    _, out, _ = call(train, "--help-all", "env=ALE/Pong-v5", "core=memoryless")
    assert "family=atari" in out
    assert "core=memoryless" in out
    assert "width: 64" in out
    assert "env_kwargs of ALE/Pong-v5: img_height=84" in out
    assert call(train, "--help", "core=rcm")[0] == 2


def test_the_default_environment_has_the_defaults_of_its_family(call):
    _, silent, _ = call(train, "--cfg", "job")
    _, named, _ = call(train, "env=rmc_rl/Copy-v0", "--cfg", "job")
    assert silent == named
    assert yaml.safe_load(silent)["algo"]["gamma"] == 0


def test_a_family_changes_keys_of_a_core(call):
    def gates(*arguments):
        return yaml.safe_load(call(train, "family=minigrid", *arguments, "--cfg", "job")[1])["core"].get("first_gates")

    assert gates("core=rmc") == "uniform"
    assert gates("core=rmc", "core.first_gates=standard") == "standard"
    assert gates("core=rims") is None
    assert yaml.safe_load(call(train, "core=rmc", "--cfg", "job")[1])["core"]["first_gates"] == "standard"
    changes = "family=minigrid changes these keys of core=rmc:"
    assert changes in call(train, "--help-all", "family=minigrid", "core=rmc")[1]
    assert "changes these keys" not in call(train, "--help-all", "family=minigrid", "core=lstm")[1]
    status, _, err = call(train, "family_core=minigrid_rmc")
    assert (status, err.startswith("error: family_core follows from family and core;")) == (2, True)


def test_the_list_of_verbs_has_colours_on_a_terminal_alone(call, monkeypatch):
    assert "\033" not in call(rmc_rl.__main__)[1]
    monkeypatch.setattr(rmc_rl.__main__, "has_colours", lambda: True)
    out = call(rmc_rl.__main__)[1]
    assert "\033[36mtrain\033[0m" in out
    assert out.count("\033[36m") == len(rmc_rl.__main__.VERBS)


def test_the_configuration_can_be_printed_alone(call):
    status, out, _ = call(train, "env=ALE/Pong-v5", "--cfg", "job")
    config = OmegaConf.create(out)
    assert (status, config.algo.clip_range, config.core.name) == (0, 0.1, "rmc")
    assert not Path("runs").exists()


def test_a_ctrl_c_while_the_model_is_saved_does_not_lose_it(call, monkeypatch):
    def interrupted(model, path):
        signal.raise_signal(signal.SIGINT)
        save_model(model, path)

    monkeypatch.setattr(train, "save_model", interrupted)
    monkeypatch.setattr(progress.RunCallback, "_on_rollout_end", lambda _: None)
    before = signal.getsignal(signal.SIGINT)
    assert call(train, *TINY, "total_timesteps=88")[0] == 0
    RecurrentPPO.load(only_run().model_path())
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_signal_does_not_wait():
    before = signal.getsignal(signal.SIGINT)
    with signals.StopSignals() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.received == signal.SIGINT
        with pytest.raises(signals.Stopped, match="SIGTERM"):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # ignored
        assert stop.should_stop()
    assert signal.getsignal(signal.SIGINT) is before


def test_stops_between_two_updates_as_well(call, monkeypatch):
    def interrupted(buffer, *arguments):
        signal.raise_signal(signal.SIGINT)
        return get(buffer, *arguments)

    get = SequenceBuffer.minibatches
    monkeypatch.setattr(SequenceBuffer, "minibatches", interrupted)
    status, out, _ = call(train, *TINY, "total_timesteps=1000", "algo.n_epochs=1000")
    assert (status, "stopped by SIGINT after 88 steps" in out) == (130, True)
    RecurrentPPO.load(only_run().model_path())


def test_trains_in_a_thread(tmp_path):
    # as some of Hydra's launchers do; handlers of signals belong to the main thread
    config = train_config(total_timesteps=88, runs_dir=tmp_path)
    with ThreadPoolExecutor() as pool:
        assert pool.submit(train.train, config).result(timeout=120) == 0
    assert list(tmp_path.rglob("model.zip"))


def test_a_crash_leaves_the_model_and_a_traceback(call, monkeypatch):
    def crash(_callback):
        raise RuntimeError("a bug")

    monkeypatch.setattr(progress.RunCallback, "_on_rollout_end", crash)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(RuntimeError, match="a bug"):
        call(train, *TINY, "total_timesteps=1000")
    RecurrentPPO.load(only_run().model_path())


def test_runs_without_arguments(tmp_path):
    # as a module, as users start it; the default is the copy task at full size
    process = subprocess.Popen([sys.executable, "-m", "rmc_rl.train"], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    printed = []
    for line in process.stdout:
        printed.append(line)
        if line.startswith("run: "):
            break
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert "env: rmc_rl/Copy-v0\n" in printed
    (path,) = tmp_path.glob("runs/rmc_rl-Copy-v0/rmc/*")
    assert Run.open(path).read_config().run.command == "python -m rmc_rl.train"


def test_bootstrap():
    found = summarise([0.0, 1.0] * 50)
    assert (found["mean"], round(found["std"], 4)) == (0.5, 0.5025)
    low, high = found["interval"]
    assert 0.39 < low < 0.42  # 0.5 -+ 1.96 * 0.05
    assert 0.58 < high < 0.61
    assert summarise([3.0])["interval"] == [3.0, 3.0]
    assert summarise([1.0, 2.0, 5.0]) == summarise([1.0, 2.0, 5.0])


def test_version():
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)
