"""What happens every so many steps of training: evaluations, patience, pictures of the memory, callbacks of the user."""

import re
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import RecurrentPPO as StockRecurrentPPO
from stable_baselines3.common.vec_env import VecNormalize
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_runs import curve

from rmc_rl import evaluate, load_policy, train
from rmc_rl.agents import MlpMemoryPolicy, match_parameters
from rmc_rl.agents.ppo import RecurrentPPO
from rmc_rl.command_line.agent import make_env, make_evaluation_env, make_model
from rmc_rl.command_line.evaluating import Evaluations
from rmc_rl.command_line.progress import hyperparameters
from rmc_rl.command_line.schema import TrainKeys, check_keys
from rmc_rl.command_line.signals import StopSignals
from rmc_rl.errors import UsageError
from rmc_rl.runs.checkpoint import find_checkpoints
from rmc_rl.studies.heat_map import heat_maps

SMALL = ["device=cpu", "num_threads=1", "n_envs=4", "algo.n_steps=22", "algo.batch_size=44", "algo.n_epochs=1"]
COPY = ["env=rmc_rl/Copy-v0", "env_kwargs.n_symbols=4", "env_kwargs.length=3", "env_kwargs.delay=5"]
TINY = [*COPY, *SMALL, "core=gru", "core.width=8", "name=first"]
EVALUATE = ["evaluate_every=150", "evaluation.episodes=12", "evaluation.env_kwargs.delay=7"]
RUN = Path("runs/rmc_rl-Copy-v0/gru/first")


def column(name, run=RUN):
    return {int(row["time/total_timesteps"]): float(row[name]) for row in curve(run) if row.get(name)}


def weights(run=RUN, model="last"):
    return load_policy(run, model).state_dict()


def equal(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def test_evaluations_are_a_curve_and_do_not_change_training(call):
    extra = ["memory_picture_every=200"]
    for index, arguments in enumerate(([], EVALUATE, [*EVALUATE, "evaluation.deterministic=false", *extra])):
        status, out, err = call(train, *TINY, *arguments, "total_timesteps=600", f"runs_dir={index}")
        assert status == 0, err
    plain, greedy, sampled = (Path(str(index), *RUN.parts[1:]) for index in range(3))
    assert equal(weights(plain), weights(greedy))
    assert equal(weights(plain), weights(sampled))
    assert column("rollout/ep_rew_mean", plain) == column("rollout/ep_rew_mean", greedy)
    assert list(column("eval/mean_reward", greedy)) == [176, 352, 528, 616]  # the first rollout's end after 150, 300 ...
    assert set(column("eval/mean_ep_length", greedy).values()) == {13.0}  # delay=7
    assert set(column("rollout/ep_len_mean", greedy).values()) == {11.0}  # delay=5
    assert column("eval/mean_reward", greedy) != column("eval/mean_reward", sampled)
    assert re.search(r"\nevaluation: return \d\.\d+, the best one \d\.\d+, see best/\n", out)
    events = EventAccumulator(str(sampled)).Reload()
    assert "eval/mean_reward" in events.Tags()["scalars"]
    assert "memory/episode" in events.Tags()["images"]
    assert len(events.Images("memory/episode")) == 3


def test_best_follows_evaluations(call):
    assert call(train, *TINY, *EVALUATE, "total_timesteps=600")[0] == 0
    found = column("eval/mean_reward")
    best = max(found, key=lambda steps: (found[steps], -steps))
    assert StockRecurrentPPO.load(RUN / "best" / "model.zip").num_timesteps == best
    # the best model plays the episodes of the evaluation as it did in training
    status, out, err = call(
        evaluate, f"run={RUN}", "model=best", "seed=2000000", "episodes=12", "n_envs=12", "env_kwargs.delay=7"
    )
    assert status == 0, err
    assert f"return: mean {found[best]:.3f}," in out


def test_a_run_with_evaluations_that_is_stopped_goes_on_to_the_same_end(call, monkeypatch):
    def counted(self, *args, **kwargs):
        trained.append(self.num_timesteps)
        return update(self, *args, **kwargs)

    trained: list[int] = []
    update = RecurrentPPO.train
    arguments = [*TINY, *EVALUATE, "memory_picture_every=300", "total_timesteps=700"]
    assert call(train, *arguments, "runs_dir=whole")[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(RecurrentPPO, "train", counted)
        patch.setattr(StopSignals, "should_stop", lambda _: len(trained) == 3)
        assert call(train, *arguments)[0] == 0
    assert find_checkpoints(RUN / "checkpoints")[0].steps == 264
    status, _, err = call(train, f"resume={RUN}", "evaluation.episodes=3")
    assert (status, "evaluation.episodes must be 12, as in the run" in err) == (2, True)
    status, _, err = call(train, f"resume={RUN}")
    assert status == 0, err
    whole = Path("whole", *RUN.parts[1:])
    assert curve(RUN) == curve(whole)
    assert equal(weights(), weights(whole))
    assert equal(weights(model="best"), weights(whole, "best"))


def test_patience_ends_a_run_that_does_not_improve(call):
    never = [*TINY, *EVALUATE, "patience=2", "algo.learning_rate=1e-30", "total_timesteps=900"]
    status, out, err = call(train, *never)
    assert status == 0, err
    assert "ended after 532 steps by patience: none of the last 2 evaluations was better" in out
    assert len(column("eval/mean_reward")) == 3
    status, out, _ = call(train, f"resume={RUN}")
    assert (status, "no evaluation was better; patience=null goes on" in out) == (0, True)
    status, out, _ = call(train, f"resume={RUN}", "patience=null")
    assert status == 0
    assert len(column("eval/mean_reward")) > 3


class Scales(gymnasium.Env):
    """Numbers around 1000; each reward is 100."""

    observation_space, action_space = spaces.Box(-np.inf, np.inf, (2,), np.float32), spaces.Discrete(2)

    def __init__(self, length=4):
        self.length = length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self.np_random.normal(1000, 10, 2).astype(np.float32), {}

    def step(self, action):
        self.time += 1
        return self.np_random.normal(1000, 10, 2).astype(np.float32), 100.0, self.time == self.length, False, {}


def config(*lines):
    from hydra import compose, initialize_config_module

    with initialize_config_module("rmc_rl.configs", version_base="1.3"):
        return check_keys(TrainKeys, compose("train", overrides=[*lines]))


def test_evaluations_use_the_statistics_of_training_and_their_own_rewards():
    gymnasium.register("Scales-v0", Scales)
    try:
        settings = config(
            "env=Scales-v0",
            "normalize=true",
            "core=memoryless",
            *SMALL,
            "++evaluation.env_kwargs.length=6",
            "family=gymnasium",
        )
        model = make_model(settings, make_env(settings))
        env = make_evaluation_env(settings, model.get_env(), 2)
        callback = Evaluations(env, 80, 3, 4, deterministic=True)
        model.learn(200, callback=callback)
        assert isinstance(env, VecNormalize)
        assert env.obs_rms is model.get_env().obs_rms
        assert np.all(env.obs_rms.mean > 900)
        assert not env.training
        assert callback.best == 600  # not normalised, and of the keyword of the evaluation
        assert callback.waited == 2
    finally:
        del gymnasium.registry["Scales-v0"]


MINE = """
from stable_baselines3.common.callbacks import BaseCallback

class Mine(BaseCallback):
    def __init__(self, until=1000):
        super().__init__()
        self.until, self.calls = until, 0
    def _on_step(self):
        self.calls += 1
        return self.calls < self.until
    def state_dict(self):
        return {"calls": self.calls}
    def load_state_dict(self, state):
        self.calls = state["calls"]

class Broken(Mine):
    def __init__(self):
        raise ValueError("no")

def function():
    pass
"""


@pytest.fixture(name="mine")
def make_mine(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("mine", None)


@pytest.mark.usefixtures("mine")
def test_callbacks_of_ones_own(call):
    status, out, err = call(train, *TINY, "callbacks=[mine:Mine,{name: mine:Mine, until: 30}]", "total_timesteps=500")
    assert status == 0, err
    assert "ended after 120 steps by a callback" in out  # in the second rollout
    status, out, err = call(train, f"resume={RUN}", "total_timesteps=600")
    assert status == 0, err


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["patience=3"], "patience needs evaluate_every, got 3"),
        (["evaluate_every=0"], "evaluate_every must be a whole number of at least 1, got 0"),
        (["evaluation.episodes=0"], "evaluation.episodes must be a whole number of at least 1, got 0"),
        (["evaluation.episode=3"], "unknown key of evaluation 'episode'; did you mean 'episodes'?"),
        (["evaluate_every=9", "evaluation.env_kwargs.dealy=3"], "unknown keyword of rmc_rl/Copy-v0 'dealy'; did you mean"),
        (["evaluate_every=9", "evaluation.env_kwargs.n_symbols=5"], "evaluation.env_kwargs must leave the observation_space"),
        (["evaluation.deterministic=maybe"], "evaluation.deterministic must be true or false, got 'maybe'"),
        (["callbacks=mine:Mine"], "callbacks must be a list as in [my_module:MyCallback]"),
        (["callbacks=[Mine]"], "callbacks must be a list as in [my_module:MyCallback] or [{name: my_module"),
        (["callbacks=[nowhere:Mine]"], "callback 'nowhere:Mine' names a module that cannot be imported: ModuleNotFound"),
        (["callbacks=[mine:Mime]"], "unknown callback of module mine 'Mime'; did you mean 'Mine'?"),
        (["callbacks=[mine:function]"], "callback 'mine:function' must be a subclass of stable_baselines3's BaseCallback"),
        (["callbacks=[{name: mine:Mine, untill: 3}]"], "unknown argument of Mine 'untill'; did you mean 'until'?"),
        (["callbacks=[mine:Broken]"], "callback 'mine:Broken' cannot be made: ValueError: no"),
        (["params=9000", "params_of=cor"], "unknown params_of 'cor'; did you mean 'core'?"),
        (["memory_picture_every=0"], "memory_picture_every must be a whole number of at least 1, got 0"),
    ],
)
def test_mistakes_get_one_line(call, arguments, message):
    status, _, err = call(train, *TINY, *arguments)
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith(f"error: {message}"), err
    assert not Path("runs").exists()


def test_parameters_of_the_core_alone(call):
    arguments = [argument for argument in TINY if not argument.startswith("core.")]
    status, out, err = call(train, *arguments, "params=9000", "params_of=core", "total_timesteps=1")
    assert status == 0, err
    core, share, state = re.search(
        r"memory: the core has ([\d,]+) parameters, (\d+) % of the policy; its state (\d+)", out
    ).groups()
    assert abs(int(core.replace(",", "")) - 9000) <= 180
    assert 0 < int(share) < 100
    assert int(state) == load_policy(RUN).core.state_size
    box, discrete = spaces.Box(-1, 1, (3,)), spaces.Discrete(2)
    found = match_parameters(MlpMemoryPolicy, box, discrete, dict(core="lstm"), 20_000, of="core")
    policy = MlpMemoryPolicy(box, discrete, lambda _: 0.0, **found)
    assert abs(sum(parameter.numel() for parameter in policy.core.parameters()) - 20_000) <= 400
    with pytest.raises(UsageError, match="the smallest such core"):
        match_parameters(MlpMemoryPolicy, box, discrete, dict(core="lstm"), 3, of="core")


def test_settings_are_hyperparameters_for_tensorboard(call):
    assert call(train, *TINY, *EVALUATE, "total_timesteps=200")[0] == 0
    events = EventAccumulator(str(RUN)).Reload()
    plugin = events.PluginTagToContent("hparams")
    assert "_hparams_/session_start_info" in plugin
    from tensorboard.plugins.hparams import plugin_data_pb2

    start = plugin_data_pb2.HParamsPluginData.FromString(plugin["_hparams_/session_start_info"]).session_start_info
    assert start.hparams["core.name"].string_value == "gru"
    assert start.hparams["algo.n_steps"].number_value == 22
    experiment = plugin_data_pb2.HParamsPluginData.FromString(plugin["_hparams_/experiment"]).experiment
    assert {metric.name.tag for metric in experiment.metric_infos} == {"rollout/ep_rew_mean", "eval/mean_reward"}
    found = hyperparameters(config("core=memoryless"))
    assert found["core.width"] == 64
    assert not {"runs_dir", "params", "name"} & set(found)


def test_heat_maps_show_sign_and_time():
    value = np.zeros((4, 2, 3))
    value[1, 0, 0], value[2, 1, 2] = 2.0, -1.0
    picture = heat_maps({"state": value, "empty": np.zeros((4, 0)), "gate": np.full((4, 1), np.nan)})
    assert picture.dtype == np.uint8
    assert picture.shape[1:] == (800, 3)
    row = 14 + 3  # the first of six rows of cells, each 6 pixels high, below the title
    assert picture[row, [100, 300, 500]].tolist() == [[255] * 3, [213, 94, 0], [255] * 3]
    below = picture[14 + 33, 500].tolist()
    assert below[2] > below[0]  # half as strong, and blue
    assert heat_maps({}).shape == (14, 800, 3)
