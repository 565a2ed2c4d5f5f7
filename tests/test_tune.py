"""Tuning studies: trials, pruning, failures, going on after a kill, the best trial as a command and a file; every mistake."""

import os
import re
import shlex
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import optuna
import pytest
import yaml
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from tiny_runs import TINY

from rmc_rl import train, tune
from rmc_rl.agents.cores import core_names
from rmc_rl.command_line import study as room
from rmc_rl.command_line import trial_runs
from rmc_rl.command_line.schema import TuneKeys, check_keys
from rmc_rl.command_line.trial_runs import TrialRuns
from rmc_rl.command_line.tuning import find_space, searchable
from rmc_rl.errors import UsageError
from rmc_rl.runs.folder import Run
from rmc_rl.studies.search_space import Parameter, as_override, flat_space, make_parameter

SMALL = [*TINY, "core=gru", "total_timesteps=440"]
# in place of a training process: its return grows with the learning rate and the seed
PROCESS = """
import os, pathlib, signal, sys, time
values = dict(word.split("=", 1) for word in sys.argv[1:])
seed, rate = int(values["seed"]), float(values["algo.learning_rate"])
run = pathlib.Path(values["runs_dir"], values["env"].replace("/", "-"), values["core"], values["name"])
run.mkdir(parents=True, exist_ok=True)
def write(until):
    rows = [f"{step},{step},{100 * rate + seed},{step}" for step in range(44, until + 1, 44)]
    names = "time/total_timesteps,time/time_elapsed,rollout/ep_rew_mean,eval/mean_reward"
    (run / "progress.csv").write_text("\\n".join([names, *rows]) + "\\n")
with open("started", "a") as file:
    file.write(run.name + " " + " ".join(sys.argv[1:]) + "\\n")
"""
ENDS = "write(440)\n"


@pytest.fixture(name="call_verb")
def make_call_verb(call):
    return call


@pytest.fixture(name="call")
def make_call(call_verb):
    return partial(call_verb, tune)


@pytest.fixture(name="trainer")
def replace_training(monkeypatch, tmp_path):
    """Replace training by a process that runs ``PROCESS`` and then what the test says."""

    def use(then=ENDS):
        (tmp_path / "trainer.py").write_text(PROCESS + then)

    def command(self, seed, name):
        own = [f"seed={seed}", f"runs_dir={self.folder / 'runs'}", f"name={name}", f"core={self.core}"]
        return [sys.executable, str(tmp_path / "trainer.py"), *self.arguments, *own]

    monkeypatch.setattr(TrialRuns, "_command", command)
    monkeypatch.setattr(trial_runs, "LOOK_EVERY", 0.05)
    use()
    return use


def trials_of(folder):
    """Read a study as optuna-dashboard does."""
    storage = JournalStorage(JournalFileBackend(str(Path(folder) / "journal.log")))
    return optuna.load_study(storage=storage, study_name=None).trials


def started():
    return [line.split() for line in Path("started").read_text().splitlines()]


@pytest.mark.usefixtures("trainer")
def test_a_study_runs_its_trials_and_prints_the_best_as_a_command(call):
    status, out, err = call(*SMALL, "trials=4", "space.algo.ent_coef=null")
    assert status == 0, err
    folder = Path("runs/studies/rmc_rl-Copy-v0/gru")
    found = trials_of(folder)
    assert [trial.state for trial in found] == [TrialState.COMPLETE] * 4
    first, best = found[0], max(found, key=lambda trial: trial.value)
    assert first.params["algo.learning_rate"] == 0.004  # the first trial is the configuration without tuning
    assert "algo.ent_coef" not in first.params
    assert first.params["policy.encoder"] is None
    assert len({trial.params["algo.learning_rate"] for trial in found}) == 4
    assert best.value == pytest.approx(100 * best.params["algo.learning_rate"], rel=1e-3)
    lines = out.splitlines()
    assert "  algo.learning_rate: 0.0001 0.01 log" in lines
    assert re.search(rf"^4/4  trial 3: return [\d.]+; .* s; best [\d.]+ of trial {best.number}$", out, re.MULTILINE)
    assert f"best: {best.value:.4g}, trial {best.number}" in out
    (command,) = (line.removeprefix("best command: ") for line in lines if line.startswith("best command: "))
    assert shlex.split(command)[:3] == ["python", "-m", "rmc_rl.train"]
    (ran,) = (words for words in started() if words[0] == f"trial-{best.number}-seed0")
    assert shlex.split(command)[3:] == [word for word in ran[1:] if not word.startswith(("seed=", "runs_dir=", "name="))][:-1]
    assert f"train --config-dir={folder} +tuned=best" in out
    assert "trials=" not in command

    status, out, _ = call(*SMALL, "trials=4", "space.algo.ent_coef=null")  # it has them all
    assert (status, len(started())) == (0, 4)
    status, out, _ = call(*reversed(SMALL), "trials=5", "space.algo.ent_coef=null", "num_threads=2")  # in another order
    assert (status, len(started())) == (0, 5)
    assert "5/5  trial 4: " in out


@pytest.mark.usefixtures("trainer")
def test_the_file_of_the_best_trial_works(call, call_verb):
    status, out, err = call(*SMALL, "trials=2", "study=my study", "policy.critic=memoryless", "evaluation.env_kwargs.delay=6")
    assert status == 0, err
    best = max(trials_of("my study"), key=lambda trial: trial.value)
    (line,) = re.findall(r"the same: +(.*)", out)
    arguments = shlex.split(line)[3:]
    assert arguments == ["--config-dir=my study", "+tuned=best"]
    status, _, err = call_verb(train, *arguments, "total_timesteps=88", "seed=4")
    assert status == 0, err
    (path,) = Path("runs").glob("rmc_rl-Copy-v0/gru/*")
    config = Run(path).read_config()
    assert config.core.width == best.params["core.width"]
    assert config.algo.learning_rate == pytest.approx(best.params["algo.learning_rate"], rel=1e-3)
    assert (config.env_kwargs, config.evaluation.env_kwargs) == (dict(n_symbols=4, length=3, delay=5), dict(delay=6))
    assert (config.policy.critic, config.seed, config.total_timesteps) == ("memoryless", 4, 88)
    assert config.algo.gamma == 0  # of the family of the world


def test_the_result_is_the_interquartile_mean_over_seeds(call, trainer):
    trainer("if seed == 9: seed = 99\nwrite(440)\n")
    assert call(*SMALL, "trials=1", "seeds=4", "seed=6")[0] == 0
    (trial,) = trials_of("runs/studies/rmc_rl-Copy-v0/gru")
    assert trial.user_attrs["returns"] == pytest.approx([6.4, 7.4, 8.4, 99.4])
    assert trial.value == pytest.approx(7.9)  # the mean of the middle two
    assert [words[0] for words in started()] == [f"trial-0-seed{seed}" for seed in range(6, 10)]
    assert max(trial.intermediate_values) == 3 * 440 + 396  # the steps of all seeds, one after the other


@pytest.mark.usefixtures("trainer")
def test_evaluations_are_the_result_where_there_are_some(call):
    status, out, _ = call(*SMALL, "trials=1", "evaluate_every=44")
    assert status == 0
    assert "mean return of the last evaluation at 440 steps" in out
    assert trials_of("runs/studies/rmc_rl-Copy-v0/gru")[0].value == 440


def test_a_run_that_fails_fails_its_trial_only(call, trainer):
    then = "n = int(run.name.split('-')[1])\nif n == 1: print('error: no luck'); sys.exit(3)\n"
    then += "if n == 2: os.kill(os.getpid(), signal.SIGKILL)\nif n == 3: sys.exit()\nwrite(440)\n"
    trainer(then)
    status, out, _ = call(*SMALL, "trials=5")
    assert status == 0
    folder = "runs/studies/rmc_rl-Copy-v0/gru"
    assert [trial.state.name for trial in trials_of(folder)] == ["COMPLETE", "FAIL", "FAIL", "FAIL", "COMPLETE"]
    assert f"2/5  trial 1: FAILED: no luck ({folder}/output/trial-1-seed0.txt); " in out
    assert "trial 2: FAILED: killed by signal 9 (" in out
    assert "trial 3: FAILED: " in out.replace("\n", " ")
    assert "progress.csv' cannot be read" in out
    assert "study: 5 trials (2 with a result, 3 failed)" in out


def test_a_study_without_a_result_has_status_1(call, trainer):
    trainer("sys.exit(1)")
    status, out, _ = call(*SMALL, "trials=1")
    assert status == 1
    assert "no trial has a result" in out
    assert "best" not in out.replace("best so far", "")


def test_hopeless_trials_are_pruned(call, trainer):
    # all but the first are bad, and would never end
    trainer("if '-0-' in run.name: rate = 9\nelse: rate = 0\nwrite(440 if rate else 132)\nif not rate: time.sleep(60)\n")
    began = time.monotonic()
    status, out, _ = call(*SMALL, "trials=3", "prune_after=1")
    assert status == 0
    assert time.monotonic() - began < 50
    states = [trial.state.name for trial in trials_of("runs/studies/rmc_rl-Copy-v0/gru")]
    assert states == ["COMPLETE", "PRUNED", "PRUNED"]
    assert "2/3  trial 1: pruned at return 0; " in out
    trainer("rate = 9 if '-0-' in run.name else 0\nwrite(440)\n")
    assert call(*SMALL, "trials=3", "prune_after=1", "pruner=none", "study=other")[0] == 0
    assert [trial.state.name for trial in trials_of("other")] == ["COMPLETE"] * 3


def test_ctrl_c_prints_the_best_and_the_next_process_goes_on_with_the_trial(call, trainer):
    trainer("if '-1-' in run.name:\n    os.kill(os.getppid(), signal.SIGINT)\n    time.sleep(60)\nwrite(440)\n")
    status, out, err = call(*SMALL, "trials=3")
    assert status == 130
    assert "best command: " in out
    assert "stopped by SIGINT; the same command goes on with the study" in out
    trainer()
    status, out, err = call(*SMALL, "trials=3")
    assert status == 0, err
    found = trials_of("runs/studies/rmc_rl-Copy-v0/gru")
    assert [trial.state.name for trial in found] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert found[2].params == found[1].params
    assert [words[0] for words in started()] == [f"trial-{number}-seed0" for number in (0, 1, 1, 3)]
    assert "study: 3 trials (3 with a result)" in out


def test_a_study_killed_by_kill_9_goes_on_with_the_same_run(call, tmp_path):
    arguments = [*TINY, "core=memoryless", "total_timesteps=8800", "trials=1", "study=s"]
    command = [sys.executable, "-m", "rmc_rl.tune", *arguments]
    run = tmp_path / "s" / "runs" / "rmc_rl-Copy-v0" / "memoryless" / "trial-0-seed0"
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(lambda: (run / "progress.csv").exists() and len((run / "progress.csv").read_text().splitlines()) > 4)
        finally:
            process.kill()
    with (tmp_path / "s" / "journal.log").open("a") as file:
        file.write('{"op_code": 7, "wor')  # and in the middle of a line
    wait_for(lambda: list((run / "checkpoints").glob("*/manifest.json")))  # the run has not outlived the study
    assert not (run / "model.zip").exists() or Run(run).read_config().total_timesteps == 8800
    status, out, err = call(*arguments)
    assert status == 0, err
    assert "trial 0: its process has ended; its runs go on" in out
    first, again = trials_of("s")
    assert (first.state, again.state) == (TrialState.FAIL, TrialState.COMPLETE)
    assert again.params == first.params
    output = (tmp_path / "s" / "output" / "trial-0-seed0.txt").read_text()
    assert re.search(r"run: s/runs/.*/trial-0-seed0 \(goes on at [\d,]+ steps\)", output)
    assert "stopped by SIGTERM after" in output
    assert [path.name for path in run.parent.iterdir()] == ["trial-0-seed0"]


def wait_for(condition, seconds=200):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)


def new_study(folder, settings=None):
    return room.open_study(folder, settings or {"env": "a"}, {}, optuna.pruners.NopPruner())


def test_processes_of_this_machine_and_of_others_are_found_dead(tmp_path):
    study = new_study(tmp_path)
    with room.Worker(tmp_path) as here, room.Worker(tmp_path) as other:
        assert here.is_alive(other.name)
        assert here.is_alive(here.name)
        far, dead = tmp_path / "workers" / "far-1-x", tmp_path / "workers" / "far-2-x"
        far.touch()
        dead.touch()
        os.utime(dead, (0, time.time() - room.DEAD_AFTER - 5))
        assert here.is_alive(far.name)
        assert not here.is_alive(dead.name)
        assert not here.is_alive("gone")
        trials = [room.take_trial(study, other, 10) for _ in range(3)]
        trials[1].set_user_attr(room.WORKER, dead.name)
        assert room.retry_dead(study, here) == [1]
        assert room.retry_dead(study, here) == []
        again = room.take_trial(study, here, 10)
        assert room.runs_of(again) == 1
        assert len(room.counted(study.trials)) == 3
        # the machine wakes up
        with pytest.raises(room.TakenOver), room.taken_over():
            trials[1].report(1.0, 1)
        with pytest.raises(room.TakenOver), room.taken_over():
            study.tell(trials[1], 1.0)
    assert room.Worker(tmp_path).name != here.name
    assert not list((tmp_path / "workers").glob(f"{here.name}"))
    with room.Worker(tmp_path) as later:
        assert not later.is_alive(other.name)
        assert room.retry_dead(study, later) == [0, 2, again.number]


def test_two_processes_take_no_trial_too_many(tmp_path):
    study = new_study(tmp_path)
    second = optuna.load_study(storage=study._storage, study_name=room.NAME)
    with room.Worker(tmp_path) as worker:
        ask = second.ask
        second.ask = lambda: (room.take_trial(study, worker, 1), ask())[1]  # the other process is faster
        assert room.take_trial(second, worker, 1) is None
        assert len(room.counted(study.trials)) == 1
        assert room.take_trial(study, worker, 1) is None


def test_each_trial_draws_numbers_of_its_own():
    drawn = set()
    for number in range(20):
        study = optuna.create_study(sampler=room.seeded_sampler(0, number, 10))
        drawn.add(study.ask().suggest_float("x", 0, 1))
    assert len(drawn) == 20


@pytest.mark.usefixtures("trainer")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trials=0"], "trials must be a whole number of at least 1, got 0"),
        (["seeds=0"], "seeds must be a whole number of at least 1, got 0"),
        (["core=gruu"], "unknown core 'gruu'; did you mean 'gru'?"),
        (["trails=3"], "unknown key 'trails'; did you mean 'trials'?"),
        (
            ["space.algo.learning_rat=[0.1,0.2]"],
            "unknown key of space 'algo.learning_rat'; did you mean 'algo.learning_rate'?",
        ),
        (["space.env_kwargs.delay=[1,2]"], "unknown key of space 'env_kwargs.delay'"),
        (["space.algo.learning_rate=[2e-2,1e-2]"], "low of algo.learning_rate in space must be below high, got [0.02, 0.01]"),
        (["space.algo.learning_rate=[0,1,log]"], "low of algo.learning_rate in space must be above 0 on a log scale, got 0"),
        (["space.algo.learning_rate=[1,a]"], "high of algo.learning_rate in space must be a finite number, got 'a'"),
        (["space.algo.learning_rate=[1,2,lgo]"], "unknown scale of algo.learning_rate in space 'lgo'; did you mean 'log'?"),
        (["space.algo.learning_rate=3"], "algo.learning_rate in space must be [low, high], [low, high, scale] or {choices: "),
        (["space.algo.gamma=[0.9,1,near_one]"], "high of algo.gamma in space must be below 1 on the scale near_one, got 1"),
        (["space.algo.n_epochs=[1.5,3]"], "algo.n_epochs cannot be searched with the value 1.5: "),
        (
            ["space.core.first_gates={choices:[uniform]}"],
            "core.first_gates in space must have choices, a list of at least two",
        ),
        (["algo.gamma=0.9", "space.algo.gamma=[0.1,0.9]"], "algo.gamma must be fixed or searched, not both, got [0.1, 0.9]"),
        (["space=none.yaml"], "space must be a YAML file with keys, as in rmc_rl/configs/tune/space.yaml, got 'none.yaml': "),
        (["pruner=meidan"], "unknown pruner 'meidan'; did you mean 'median'?"),
        (["name=mine"], "name must be null: tune names its runs, and the same command goes on, got 'mine'"),
        (["patience=3"], "patience needs evaluate_every, got 3"),
        (["env_kwargs.delay=-1"], "delay must be"),
    ],
)
def test_mistakes_get_one_line(arguments, message, call):
    status, out, err = call("core=gru", *arguments)
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {message}"), err
    assert err.count("\n") == 1
    assert not Path("started").exists()


@pytest.mark.usefixtures("trainer")
def test_a_file_is_the_whole_space(call):
    Path("mine.yaml").write_text("algo:\n  learning_rate: [1e-4, 1e-2, log]\n  gamma: [0.5, 0.99, near_one]\n")
    status, _, err = call(*SMALL, "trials=2", "space=mine.yaml")
    assert status == 0, err
    assert [set(trial.params) for trial in trials_of("runs/studies/rmc_rl-Copy-v0/gru")] == [
        {"algo.learning_rate", "1 - algo.gamma"}
    ] * 2
    drawn = [float(word.partition("=")[2]) for words in started() for word in words if word.startswith("algo.gamma=")]
    assert all(0.5 <= value <= 0.99 for value in drawn)
    bad = {"algo: [": "space must be a YAML file with keys", "algo:\n  gama: [0, 1]\n": "unknown key of 'bad.yaml'"}
    for content, why in bad.items():
        Path("bad.yaml").write_text(content)
        status, _, err = call(*SMALL, "space=bad.yaml", "study=other")
        assert (status, err.count("\n")) == (2, 1)
        assert why in err


@pytest.mark.usefixtures("trainer")
def test_a_study_goes_on_only_with_what_it_began_with(call):
    assert call(*SMALL, "trials=1", "study=s")[0] == 0
    for arguments, what in [
        (
            ["env=CartPole-v1", "core=gru", "total_timesteps=440"],
            "env must be 'rmc_rl/Copy-v0', as in the study 's', got 'Cart",
        ),
        ([*SMALL, "core=lstm"], "core must be 'gru', as in the study 's', got 'lstm'"),
        ([*SMALL, "seeds=2"], "seeds must be 1, as in the study 's', got 2"),
        ([*SMALL, "algo.clip_range=0.1"], "arguments: algo.clip_range must be None, as in the study 's', got '0.1'"),
        (
            [*SMALL, "space.algo.ent_coef=null"],
            "space: algo.ent_coef must be [0.02, 1.0, 'log'], as in the study 's', got None",
        ),
    ]:
        status, out, err = call(*arguments, "trials=2", "study=s")
        assert (status, out, err.count("\n")) == (2, "", 1), err
        assert err.startswith(f"error: {what}"), err
        assert "study=<folder> makes a new one" in err


@pytest.mark.usefixtures("trainer")
def test_a_journal_that_cannot_be_read_is_named(call):
    Path("s").mkdir()
    for content in ("no journal\nat all\n", '{"op_code": 99}\n{}\n', '{"a": 1}\n'):
        Path("s/journal.log").write_text(content)
        status, out, err = call(*SMALL, "trials=1", "study=s")
        assert (status, out, err.count("\n")) == (2, "", 1), err
        assert err.startswith("error: the study's journal must be one that Optuna can read, got 's/journal.log': ")
    Path("file").touch()
    status, _, err = call(*SMALL, "trials=1", "study=file")
    assert status == 2
    assert err.startswith("error: study must be a folder that can be written to, got 'file'")


@pytest.mark.parametrize("name", ["optuna", "scipy"])
def test_a_missing_extra_gets_the_command_that_installs_it(name, call, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    status, _, err = call("trials=1")
    assert status == 2
    assert err == f"error: tune needs {name}: pip install 'rmc-rl[tune]' (pip install '.[tune]' in a checkout)\n"


def test_other_verbs_do_not_import_optuna(python):
    done = python("-c", "import sys, rmc_rl.train, rmc_rl.tune; assert 'optuna' not in sys.modules")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("env", "core"),
    [
        *(("rmc_rl/Copy-v0", core) for core in core_names()),
        *((env, "gru") for env in ("CartPole-v1", "rmc_rl/CartPolePositions-v0", "rmc_rl/PendulumAngle-v0", "ALE/Pong-v5")),
    ],
)
def test_shipped_spaces_hold_keys_that_exist_with_valid_values(env, core, checkout):
    with initialize_config_module("rmc_rl.configs", version_base="1.3"):
        config = check_keys(TuneKeys, compose("tune", overrides=[f"core={core}", f"env={env}"]))
    found = {parameter.key for parameter in find_space(config, [])}
    assert "algo.learning_rate" in found
    path = checkout / "rmc_rl" / "configs" / "tune" / "core" / f"{core}.yaml"
    of_core = set(flat_space(OmegaConf.to_container(OmegaConf.load(path)), "a file"))
    assert of_core <= found <= set(searchable(config))
    assert ("algo.gamma" in found) == (env != "rmc_rl/Copy-v0")
    assert not of_core & {parameter.key for parameter in find_space(OmegaConf.merge(config, {"params": 50000}), [])}


def test_values_are_drawn_stored_and_written_alike():
    study = optuna.create_study(sampler=room.seeded_sampler(0, 0, 10))
    near = make_parameter("gamma", [0.9, 0.999, "near_one"], "x")
    trial = study.ask()
    drawn = near.suggest(trial)
    assert drawn == near.value(trial.params["1 - gamma"])
    assert 0.9 <= drawn <= 0.999
    assert near.nearest(0.99) == 0.01
    assert near.nearest(0.5) == 0.1
    gammas = [near.suggest(study.ask()) for _ in range(200)]
    assert np.mean(np.array(gammas) > 0.99) == pytest.approx(0.5, abs=0.15)  # as likely below 0.99 as above

    layers = Parameter("encoder", choices=(None, [64], "a b", True))
    assert {as_override(layers.suggest(study.ask())) for _ in range(40)} == {"null", "[64]", '"a b"', "true"}
    assert layers.value("[64]") == [64]
    assert layers.nearest([64]) == "[64]"
    assert layers.nearest([32]) is None
    whole = make_parameter("n", [2, 10], "x")
    assert {whole.suggest(study.ask()) for _ in range(200)} == set(range(2, 11))
    assert whole.nearest(64) == 10
    assert whole.nearest("text") is None
    assert as_override({"pi": [], "vf": [64]}) == "{pi:[],vf:[64]}"
    assert as_override(1e-5) == "1e-05"
    with pytest.raises(UsageError, match="choices must be made of"):
        make_parameter("n", {"choices": [1, object()]}, "x")


def test_help_lists_the_keys(call):
    status, out, _ = call("--help", "core=gru")
    assert status == 0
    for key in yaml.safe_load(Path(room.__file__).parents[1].joinpath("configs", "tune.yaml").read_text()):
        assert key == "defaults" or f"  {key}: " in out
