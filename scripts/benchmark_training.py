"""
How fast training is, against the stock class: python scripts/benchmark_training.py [--threads 2] [--worlds aligned pong] ...

sb3-contrib's RecurrentPPO with its own policy (two LSTMs of 256) and ours with several cores train in turn, one rollout and
its update each, on the same world. A table of how many times faster than the stock class each is: median over the rounds, and
the range. Ratios within a round, for a machine that others use as well is slow now and fast then. --storage measures memory:
of the storage of a rollout, and with the most that handing out its minibatches adds, each dropped before the next.

Worlds: vectors of 8 numbers and 4 actions, 16 environments x 128 steps, batch 512, 4 epochs, whose episodes are "aligned" (32
steps, all at once), "geometric" (32 steps in the mean) or "endless"; "pong" is ALE/Pong-v5, 8 x 128, batch 256, 4 epochs;
"copy256" and "copy4096" are so many copies of rmc_rl/Copy-v0 x 70 steps, in one minibatch each, living on the device.
"""

import argparse
import os
import platform
import re
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import sb3_contrib
import stable_baselines3
import torch
from gymnasium import spaces
from plain_vec_env import PlainVecEnv
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from rmc_rl import CnnMemoryPolicy, MlpMemoryPolicy, RecurrentPPO, make_vec
from rmc_rl.command_line.devices import keep_freed_memory

MEAN_LENGTH = 32
LAWS = ("aligned", "geometric", "endless")
COPY_STEPS = 70  # an episode of the copy task


class Laws(PlainVecEnv):
    """Random vectors, a reward of 1 for the right action, and episodes that end by a law."""

    def __init__(self, law: str, num_envs: int):
        self.render_mode = None
        super().__init__(num_envs, spaces.Box(-1, 1, (8,), np.float32), spaces.Discrete(4))
        self.law, self.rng, self.time = law, np.random.default_rng(0), 0

    def _observe(self) -> np.ndarray:
        self.seen = self.rng.uniform(-1, 1, (self.num_envs, 8)).astype(np.float32)
        return self.seen

    def reset(self) -> np.ndarray:
        self.time = 0
        return self._observe()

    def step_async(self, actions: np.ndarray) -> None:
        self.actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        rewards = (self.actions == self.seen[:, :4].argmax(1)).astype(np.float32)
        self.time += 1
        if self.law == "aligned":
            dones = np.full(self.num_envs, self.time % MEAN_LENGTH == 0)
        else:
            dones = self.rng.random(self.num_envs) < (1 / MEAN_LENGTH if self.law == "geometric" else 0)
        return self._observe(), rewards, dones, [{} for _ in dones]


Maker = Callable[[str], sb3_contrib.RecurrentPPO]  # from a device to an agent


def contenders(world: str, sequence_length: int | None) -> dict[str, Maker]:
    """Name -> a function that makes the agent; the first is the stock class."""
    pong, copies = world == "pong", int(world.removeprefix("copy")) if world.startswith("copy") else 0
    arguments: dict[str, Any] = dict(n_steps=128, batch_size=256 if pong else 512, n_epochs=4, seed=0)
    if copies:
        arguments |= dict(n_steps=COPY_STEPS, batch_size=COPY_STEPS * copies)

    def env(device: str) -> VecEnv:
        if copies:
            return make_vec("rmc_rl/Copy-v0", copies, seed=0, device=device)
        return make_vec("ALE/Pong-v5", 8, seed=0) if pong else Laws(world, 16)

    def ours(**policy_kwargs: Any) -> Maker:
        policy = CnnMemoryPolicy if pong else MlpMemoryPolicy
        kwargs = arguments | dict(sequence_length=sequence_length, policy_kwargs=policy_kwargs)
        return lambda device: RecurrentPPO(policy, env(device), device=device, **kwargs)

    stock_policy = "CnnLstmPolicy" if pong else "MlpLstmPolicy"
    lstm = dict(core="lstm", core_kwargs=dict(width=256))
    rmc = {size: dict(core="rmc", core_kwargs=dict(num_slots=4, num_heads=4, head_size=size // 4)) for size in (64, 128)}
    half = {"LSTM (256)": lstm, "RMC (width 64)": rmc[64]} if pong else {}
    return {
        "stock, two LSTM (256)": lambda device: sb3_contrib.RecurrentPPO(stock_policy, env("cpu"), device=device, **arguments),
        "LSTM (256)": ours(**lstm),
        "LSTM (256), critic=separate": ours(critic="separate", **lstm),
        "RMC (width 64)": ours(**rmc[64]),
        "RMC (width 128)": ours(**rmc[128]),
        "GRU (256)": ours(core="gru", core_kwargs=dict(width=256)),
        "RIMs (4 of 6 modules of 16)": ours(core="rims"),
        **{f"{name}, amp=bf16": ours(amp="bf16", **core) for name, core in half.items()},
    }


def resident(field: str) -> int:
    """Bytes of this process in memory, VmRSS, or the most since it was last asked, VmHWM."""
    kilobytes = int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])  # type: ignore[index]
    return kilobytes * 1024


def storage(world: str, name: str, sequence_length: int | None) -> tuple[int, int]:
    """Bytes of an agent's rollout storage, and at its peak; in a process whose freed memory is given back at once."""
    model = contenders(world, sequence_length)[name]("cpu")
    buffer: Any = model.rollout_buffer
    _, callback = model._setup_learn(model.n_steps * model.n_envs, None)
    assert model.env is not None
    for _ in range(2):  # the first one loads code as well
        model.collect_rollouts(model.env, callback, buffer, model.n_steps)
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM begins anew
        batches = (buffer.minibatches if isinstance(model, RecurrentPPO) else buffer.get)(model.batch_size)
        while next(batches, None) is not None:
            pass
        extra = resident("VmHWM") - before
    values = [*vars(buffer).values(), *getattr(buffer, "tensors", ())]
    parts = [part for value in values for part in (value if isinstance(value, tuple) else [value])]
    stored = sum({id(part): part.nbytes for part in parts if hasattr(part, "nbytes")}.values())
    return stored, stored + extra


def compare_storage(world: str, sequence_length: int | None) -> None:
    """Print the rows of one world."""
    os.environ |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    first = None
    for name in contenders(world, sequence_length):
        with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
            found = pool.submit(storage, world, name, sequence_length).result()
        first = first or found
        cells = " | ".join(f"{mine / 1e6:.1f} MB, {mine / stock:.2f}" for mine, stock in zip(found, first, strict=True))
        print(f"| {world} | {name} | {cells} |", flush=True)


def measure(world: str, rounds: int, device: str, sequence_length: int | None) -> None:
    """Print the rows of one world."""
    models = {name: make(device) for name, make in contenders(world, sequence_length).items()}
    steps = {name: model.n_steps * model.n_envs for name, model in models.items()}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for number in range(rounds + 1):
        for name, model in models.items():
            begin = time.perf_counter()
            model.learn(steps[name], reset_num_timesteps=False)
            if device == "cuda":
                torch.cuda.synchronize()
            if number > 0:  # the first one allocates
                seconds[name].append(time.perf_counter() - begin)
    stock = next(iter(models))
    for name, found in seconds.items():
        ratios = np.array(seconds[stock]) / np.array(found)
        rate = steps[name] / np.median(found)
        spread = f"{np.median(ratios):.1f} [{ratios.min():.1f}, {ratios.max():.1f}]" if name != stock else "1"
        length = getattr(models[name].rollout_buffer, "sequence_length", "")
        print(f"| {world} | {name} | {length} | {spread} | {rate:,.0f} |", flush=True)


def known(world: str) -> str:
    """A world's name, checked."""
    if world not in (*LAWS, "pong") and not re.fullmatch(r"copy[1-9]\d*", world):
        raise argparse.ArgumentTypeError(f"a world must be {', '.join(LAWS)}, pong or copy<copies>, got '{world}'")
    return world


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--worlds", nargs="+", type=known, default=list(LAWS), help="of these three, pong, copy<n>")
    parser.add_argument("--sequence-length", type=int, help="of ours; default: 128, the rollout")
    parser.add_argument("--storage", action="store_true", help="measure memory instead (Linux)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()  # for both
    versions = f"torch {torch.__version__}, SB3 {stable_baselines3.__version__}, sb3-contrib {sb3_contrib.__version__}"
    where = torch.cuda.get_device_name() if arguments.device == "cuda" else f"{arguments.threads} threads"
    print(f"{versions}, Python {platform.python_version()}, {where}, {arguments.rounds} rounds\n")
    if arguments.storage:
        print("| episodes | agent | storage, times stock | at its peak, times stock |")
        print("| --- | --- | --- | --- |")
        for world in arguments.worlds:
            compare_storage(world, arguments.sequence_length)
        return
    print("| episodes | agent | sequence_length | times stock | steps/s |")
    print("| --- | --- | --- | --- | --- |")
    for world in arguments.worlds:
        measure(world, arguments.rounds, arguments.device, arguments.sequence_length)


if __name__ == "__main__":
    main()
