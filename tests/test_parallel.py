"""Two processes that train one agent, against one process with all copies of the environment."""

import gc
import os
import re
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
import torch.distributed as dist
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnvWrapper
from tiny_runs import curve

from rmc_rl import Imitation, MlpMemoryPolicy, RecurrentPPO, evaluate, make_vec, train
from rmc_rl.agents import parallel
from rmc_rl.agents.sequences import SequenceBuffer
from rmc_rl.errors import UsageError
from rmc_rl.runs.normalization import normalize

pytestmark = pytest.mark.skipif(not hasattr(os, "fork") or torch.cuda.is_available(), reason="the tests fork on the CPU")
SECONDS = 120  # that a process may take
stores = []


def fork(work, folder: Path, size: int = 2) -> list[int]:
    """Start processes as torchrun does, which write what they print to ``<number>.out`` and ``<number>.err``."""
    stores.append(dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False))  # torchrun keeps it as well
    variables = dict(WORLD_SIZE=str(size), MASTER_ADDR="localhost", MASTER_PORT=str(stores[-1].port))
    variables |= dict(TORCHELASTIC_USE_AGENT_STORE="True", TORCHELASTIC_RESTART_COUNT="0")
    children = []
    for rank in range(size):
        child = os.fork()
        if child:
            children.append(child)
            continue
        gc.freeze()  # what the parent left behind may wait for threads that do not exist here when it is collected
        status = 1
        try:
            for descriptor, name in ((1, "out"), (2, "err")):
                os.dup2(os.open(folder / f"{rank}.{name}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC), descriptor)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
            os.environ.update(variables, RANK=str(rank))
            signal.signal(signal.SIGINT, signal.default_int_handler)
            work()
            status = 0
        except SystemExit as end:
            status = end.code
        except BaseException:  # which the parent shows; nothing else would
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status if isinstance(status, int) else 1)
    return children


def wait(children: list[int]) -> list[int]:
    """The exit statuses, 128 and the number of a signal; processes that take too long are killed."""
    ends, found = time.monotonic() + SECONDS, {}
    while len(found) < len(children):
        for child in children:
            if child not in found and (ended := os.waitpid(child, os.WNOHANG)) != (0, 0):
                found[child] = os.waitstatus_to_exitcode(ended[1])
            elif child not in found and time.monotonic() > ends:
                os.kill(child, signal.SIGKILL)
        time.sleep(0.02)
    return [found[child] if found[child] >= 0 else 128 - found[child] for child in children]


def told(err: str) -> list[str]:
    """The lines of our errors."""
    assert "Traceback" not in err
    assert "Error executing job" not in err
    return re.findall(r"error: .*", err)


@pytest.fixture(name="torchrun")
def make_torchrun(monkeypatch, tmp_path):
    """Call the verb train in two processes, in an empty folder: statuses, standard outputs, standard errors."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, verb=train, during=None):
        def work():
            sys.argv = [f"{verb.__name__}.py", *map(str, arguments)]
            verb.main()

        children = fork(work, tmp_path)
        if during is not None:
            during(children)
        statuses = wait(children)
        texts = [[(tmp_path / f"{rank}.{name}").read_text() for rank in range(2)] for name in ("out", "err")]
        return statuses, *texts

    return run


# What is computed


class Masked(gymnasium.Env):
    """An environment with action masks, whose episodes depend on the actions."""

    observation_space, action_space = spaces.Box(-2, 2, (3,)), spaces.MultiDiscrete([3, 2])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._observe(), {}

    def _observe(self):
        self.masks = self.np_random.random(5) < 0.5
        self.masks[[self.np_random.integers(3), 3 + self.np_random.integers(2)]] = True
        return self.np_random.normal(size=3).clip(-2, 2).astype(np.float32)

    def step(self, action):
        assert self.masks[[action[0], 3 + action[1]]].all()
        self.steps += 1
        done = bool(self.steps > 3 + action[0] + 4 * action[1])
        return self._observe(), float(action[0]), done, False, {"is_success": bool(action[1])}

    def action_masks(self):
        return self.masks


class Answering(VecEnvWrapper):
    """Says where a cart should be pushed, if its pole is tilted."""

    def reset(self):
        self.seen = self.venv.reset()
        return self.seen

    def step_wait(self):
        self.seen, *others = self.venv.step_wait()
        return self.seen, *others

    def answers(self):
        return (self.seen[:, 2] > 0).astype(int), np.abs(self.seen[:, 2]) > 0.02


class Stop(BaseCallback):
    """Ends the training in the second process alone."""

    def _on_step(self):
        return self.n_calls < 10 or parallel.is_first()


gymnasium.register("ParallelMasked-v0", Masked)
CASES = {
    "rows of unequal length": dict(env="CartPole-v1", core="gru", batch_size=40, sequence_length=7),
    "normalised": dict(env="CartPole-v1", core="lstm", normalize=True, clip_range_vf=0.2),
    "a process without a sequence": dict(env="CartPole-v1", core="rims", batch_size=16, sequence_length=16),
    "limit of the divergence": dict(env="CartPole-v1", core="mingru", target_kl=1e-5, learning_rate=0.01),
    "gSDE, time limits": dict(
        env="Pendulum-v1", core="rmc", env_kwargs=dict(max_episode_steps=9), use_sde=True, sde_sample_freq=4, critic="separate"
    ),
    "Box": dict(env="Pendulum-v1", core="gtrxl", env_kwargs=dict(max_episode_steps=9), critic="memoryless"),
    "masks": dict(env="ParallelMasked-v0", core="gru"),
    "images": dict(env="ALE/Boxing-v5", core="gru", n_steps=16, n_epochs=1),
    "imitation": dict(env="CartPole-v1", core="gru", algorithm=Imitation, wrapper=Answering),
    "stopped by one process": dict(env="CartPole-v1", core="gru", callback=Stop()),
}


def trained(env, core, env_kwargs=None, critic="shared", algorithm=RecurrentPPO, wrapper=None, callback=None, **kwargs):
    """Train for three updates: what they led to."""
    vec_env = make_vec(env, parallel.share("n_envs", 4), seed=3, env_kwargs=env_kwargs)
    vec_env = normalize(vec_env if wrapper is None else wrapper(vec_env), kwargs.pop("normalize", False), 0.99)
    policy = "CnnMemoryPolicy" if env.startswith("ALE/") else MlpMemoryPolicy
    defaults = dict(n_steps=32, batch_size=64, n_epochs=2, seed=3, device="cpu")
    policy_kwargs = dict(core=core, critic=critic)
    model = algorithm(policy, vec_env, policy_kwargs=policy_kwargs, **(defaults | kwargs))
    model.learn(3 * 4 * model.n_steps, callback=callback)
    moments = getattr(vec_env, "obs_rms", None)
    vec_env.close()
    return dict(
        steps=model.num_timesteps,
        policy=model.policy.state_dict(),
        moments=None if moments is None else (moments.mean, moments.var, moments.count),
        logged=dict(model.logger.name_to_value),
        episodes=[(episode["r"], episode["l"]) for episode in model.ep_info_buffer],
        successes=list(model.ep_success_buffer),
        updates=model._n_updates,
    )


@pytest.fixture(name="both", scope="module")
def train_in_two_processes(tmp_path_factory):
    """What each case leads to in two processes, as each of them sees it."""
    folder = tmp_path_factory.mktemp("parallel")

    def work():
        parallel.start()
        results = {name: trained(**case) for name, case in CASES.items()}
        torch.save(results, folder / f"{parallel.rank()}.pt")
        parallel.stop()

    statuses = wait(fork(work, folder))
    assert statuses == [0, 0], (folder / "0.err").read_text() + (folder / "1.err").read_text()
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("stopped")])
def test_two_processes_compute_what_one_computes(name, both):
    one = trained(**CASES[name])
    assert one["updates"] >= 3 or name == "limit of the divergence"
    for found in (both[0][name], both[1][name]):
        for key, value in one["policy"].items():
            torch.testing.assert_close(found["policy"][key], value, rtol=0, atol=1e-6, msg=key)
        assert found["steps"] == one["steps"]
        assert found["updates"] == one["updates"]
        assert found["successes"] == one["successes"]
        np.testing.assert_allclose(found["episodes"], one["episodes"], rtol=1e-5)
        if one["moments"] is not None:
            for part, expected in zip(found["moments"], one["moments"], strict=True):
                np.testing.assert_allclose(part, expected, rtol=1e-9)
    logged = both[0][name]["logged"]
    assert logged.keys() == one["logged"].keys()
    for key, value in one["logged"].items():
        assert logged[key] == pytest.approx(value, rel=1e-3, abs=1e-5), key
    if name == "limit of the divergence":
        assert one["updates"] < 6  # it was reached


def test_the_processes_have_the_same_weights_bit_by_bit(both):
    for name in CASES:
        first, second = (part[name]["policy"] for part in both)
        assert all(torch.equal(first[key], second[key]) for key in first), name


def test_a_callback_that_stops_one_process_stops_all_at_the_next_rollout(both):
    for part in both:
        assert part["stopped by one process"]["steps"] == 32 * 4 + 4


def test_minibatches_of_the_processes_are_a_partition_of_those_of_one(monkeypatch):
    """The same steps in each minibatch, and counts that add up."""
    states = MlpMemoryPolicy(spaces.Box(0, 1, (2,)), spaces.Discrete(2), lambda _: 0.0, core="gru").initial_states
    monkeypatch.setattr(parallel, "from_first", lambda order: order)

    def drawn(n_envs, rank, size):
        buffer = SequenceBuffer(10, n_envs, 4, spaces.Box(0, 1, (2,)), spaces.Discrete(2), states(n_envs), 0, "cpu")
        np.random.seed(0)
        found = []
        for _, steps, lengths, total, counts in buffer._batches(8, rank, size):
            assert lengths.sum() == len(steps)
            time, env = np.divmod(steps, n_envs)
            found.append(({(t, e + rank * n_envs) for t, e in zip(time, env, strict=True)} if counts else set(), total))
        return found

    parts = [drawn(2, rank, 3) for rank in range(3)]
    for (whole, total), *shares in zip(drawn(6, 0, 1), *parts, strict=True):
        assert len(whole) == total == sum(len(share) for share, _ in shares)
        assert set.union(*(share for share, _ in shares)) == whole
        assert {count for _, count in shares} == {total}
    assert any(not share for part in parts for share, _ in part)  # a process without a sequence


# What is written, and how it ends

TINY = [
    "env=CartPole-v1",
    "core=gru",
    "normalize=true",
    "device=cpu",
    "num_threads=1",
    "n_envs=4",
    "algo.n_steps=22",
    "algo.batch_size=44",
    "algo.n_epochs=1",
]
RUN = Path("runs/CartPole-v1/gru")


def test_a_run_of_two_processes_is_resumed_exactly(torchrun, call):
    statuses, out, err = torchrun(*TINY, "name=whole", "total_timesteps=352", "evaluate_every=100", "evaluation.episodes=2")
    assert statuses == [0, 0], err
    assert "processes: 2, with 2 copies of the environment each" in out[0]
    assert out[1] == err[1] == ""  # the first one prints
    assert [path.name for path in RUN.iterdir()] == ["whole"]
    assert len(list((RUN / "whole").glob("events*"))) == 1
    assert [row["time/total_timesteps"] for row in curve(RUN / "whole")] == ["88", "176", "264", "352"]
    torchrun(*TINY, "name=part", "total_timesteps=176", "evaluate_every=100", "evaluation.episodes=2")
    statuses, out, err = torchrun(f"resume={RUN}/part", "total_timesteps=352")
    assert statuses == [0, 0], err
    assert "goes on at 176 steps" in out[0]
    assert curve(RUN / "part") == curve(RUN / "whole")
    for name in ("policy.pt", "optimizer.pt", "random.pt", "random.1.pt", "environment.pt", "environment.1.pt"):
        whole, part = ((RUN / run / "checkpoints" / "352" / name).read_bytes() for run in ("whole", "part"))
        assert whole == part, name
    # one process cannot go on with the checkpoint of two
    status, _, err = call(train, f"resume={RUN}/part", "total_timesteps=500")
    assert status == 2
    assert re.fullmatch(r"error: checkpoint '.*352' must be of a run with the same number of processes, 2, got 1\n", err)


def training(folder=Path()):
    """Wait until there is a checkpoint."""
    ends = time.monotonic() + SECONDS
    while not list((folder / RUN).glob("*/checkpoints/*/manifest.json")) and time.monotonic() < ends:
        time.sleep(0.02)


ENDLESS = [*TINY, "total_timesteps=10000000", "checkpoint_every=88", "name=endless"]


@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_process_ends_the_others_with_one_line(torchrun, lost):
    def kill(children):
        training()
        os.kill(children[lost], signal.SIGKILL)

    statuses, _, err = torchrun(*ENDLESS, during=kill)
    assert statuses[lost] == 128 + signal.SIGKILL
    assert statuses[1 - lost] == 1
    (line,) = told(err[1 - lost])
    assert line.startswith("error: one of the 2 processes that train together has ended or cannot be reached (")


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_signal_to_one_process_stops_all_with_a_checkpoint(torchrun, stopped):
    def stop(children):
        training()
        os.kill(children[stopped], signal.SIGUSR1)
        os.kill(children[stopped], signal.SIGTERM)  # a second one does not leave the other process alone

    statuses, out, err = torchrun(*ENDLESS, during=stop)
    assert statuses == [128 + signal.SIGUSR1] * 2, err
    steps = int(re.search(r"stopped by SIGUSR1 after ([\d,]+) steps; to go on: ", out[0])[1].replace(",", ""))
    assert (RUN / "endless" / "checkpoints" / str(steps - 4) / "random.1.pt").is_file()  # one step before it stopped
    assert out[1] == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["n_envs=3"], "n_envs must be a multiple of 2, the number of processes, got 3"),
        (["algo=stock"], "algo=stock must be trained by one process, got 2"),
        (["-m", "seed=1,2"], "processes of torchrun train one agent together: use them without -m, got ['env=CartPole-v1'"),
        (["core=grru"], "unknown core 'grru'; did you mean 'gru'?"),
        (["resume=nowhere"], "run must be the folder of a run, got 'nowhere'"),
    ],
)
def test_mistakes_are_told_once(torchrun, arguments, message):
    statuses, _, err = torchrun(*TINY, *arguments)
    assert 2 in statuses
    assert set(statuses) <= {1, 2}
    (line,) = told("".join(err))
    assert line.startswith(f"error: {message}")
    assert not Path("runs").exists()


def test_other_verbs_are_not_started_in_several_processes(torchrun):
    statuses, _, err = torchrun("run=nowhere", verb=evaluate)
    assert statuses == [2, 2]
    assert "".join(err) == "error: of the verbs, torchrun must start rmc_rl.train only, got 'rmc_rl.evaluate'\n"


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({}, r"needs the variables RANK, .* as torchrun sets them, got \['RANK', 'MASTER_ADDR', 'MASTER_PORT'\]"),
        (dict(RANK="1", MASTER_ADDR="localhost", MASTER_PORT="x"), "MASTER_PORT must be a whole number, .* got 'x'"),
        (dict(RANK="2", MASTER_ADDR="localhost", MASTER_PORT="1"), "RANK must be below WORLD_SIZE, 2, got 2"),
    ],
)
def test_variables_that_are_not_those_of_torchrun_are_refused(monkeypatch, variables, message, call):
    for name, value in dict(WORLD_SIZE="2", **variables).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=message):
        parallel.start()
    status, _, err = call(train, *TINY)
    assert (status, err.count("\n")) == (2, 1)


@pytest.mark.parametrize("world_size", [None, "1"])
def test_one_process_is_no_group(monkeypatch, world_size):
    if world_size is not None:
        monkeypatch.setenv("WORLD_SIZE", world_size)
    parallel.start()
    assert (parallel.rank(), parallel.size(), parallel.is_first(), parallel.may_tell()) == (0, 1, True, True)
    tensor, array = torch.ones(3), np.ones(3)
    assert parallel.total(tensor) is tensor
    assert parallel.among_all(tensor) is tensor
    assert parallel.rows(array) is array
    assert parallel.gather(array)[0] is array
    assert tensor[parallel.own_rows(3)].equal(tensor)


def test_torchrun_itself(tmp_path):
    """A process that is killed ends the command, with our line among torchrun's own."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "rmc_rl.train"]
    with subprocess.Popen(
        [*command, *ENDLESS], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as run:
        training(tmp_path)
        children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
        victim = next(child for child in children if b"RANK=1\0" in Path(f"/proc/{child}/environ").read_bytes())
        os.kill(int(victim), signal.SIGKILL)
        out, _ = run.communicate(timeout=SECONDS)
    assert run.returncode == 1
    assert out.count("error: one of the 2 processes that train together has ended or cannot be reached (") == 1
