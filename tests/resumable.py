"""
Runs that are stopped and resumed: settings, training, and a program that resumes in a new process.

``python resumable.py <folder> <case> ...`` resumes each case from ``<folder>/<case>/checkpoints`` and writes what came out to
``<folder>/<case>/resumed.pt``.
"""

import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from sb3_contrib import RecurrentPPO as StockRecurrentPPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecMonitor, VecNormalize

from rmc_rl import Imitation, MlpMemoryPolicy, MultiInputMemoryPolicy, RecurrentPPO, make_vec
from rmc_rl.runs.checkpoint import Checkpoints

N_STEPS, ROLLOUTS, STOPPED_AFTER = 16, 4, 2
CORES = {
    "rmc": dict(num_slots=2, num_heads=2, head_size=4),
    "rims": dict(num_modules=3, num_active=2, module_size=4),
    "gtrxl": dict(num_layers=1, num_heads=2, head_size=4, memory_length=4),
    "lstm": dict(width=8),
}
COPY = dict(n_symbols=3, length=2, delay=2)
PARTIAL = dict(hide=[1], flicker=0.2, noise=0.1, drop_sensors=0.1, delay=2)
MASKED = "MaskedCounting-v0"


class Masked(gymnasium.Env[np.ndarray, np.int64]):
    """Each step forbids one action, drawn from the environment's generator; episodes have random lengths."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(3)

    def _observe(self) -> np.ndarray:
        self.forbidden = int(self.np_random.integers(3))
        return self.np_random.uniform(-1, 1, 2).astype(np.float32)

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(**kwargs)
        return self._observe(), {}

    def action_masks(self) -> np.ndarray:
        return np.arange(3) != self.forbidden

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert action != self.forbidden
        return self._observe(), float(action), bool(self.np_random.random() < 0.1), False, {}


gymnasium.register(MASKED, Masked)


def _model(env: VecEnv, core: str, algorithm: Any = RecurrentPPO, policy: Any = MlpMemoryPolicy, **kwargs: Any) -> Any:
    policy_kwargs = dict(core=core, core_kwargs=CORES[core], **kwargs.pop("policy_kwargs", {}))
    settings = dict(n_steps=N_STEPS, batch_size=32, n_epochs=2, seed=3, device="cpu")
    return algorithm(policy, env, policy_kwargs=policy_kwargs, **{**settings, **kwargs})


def _copy(core: str, critic: str = "shared", **kwargs: Any) -> Any:
    return _model(make_vec("rmc_rl/Copy-v0", 4, seed=1, env_kwargs=COPY), core, policy_kwargs=dict(critic=critic), **kwargs)


def _normalized() -> VecEnv:
    return VecNormalize(make_vec("CartPole-v1", 4, seed=1), gamma=0.9)


def _framestack() -> VecEnv:
    return VecMonitor(VecFrameStack(make_vec_env("Pendulum-v1", 2, seed=1), 3))


CASES = {
    **{f"copy {core}": lambda core=core: _copy(core) for core in CORES},
    "copy separate": lambda: _copy("rmc", "separate"),
    "copy memoryless": lambda: _copy("lstm", "memoryless"),
    "copy linear": lambda: _copy("rmc", learning_rate=LinearSchedule(0.01, 0.0, 1.0)),
    "copy target_kl": lambda: _copy("lstm", target_kl=1e-4, n_epochs=4),
    "copy sequences": lambda: _copy("rims", sequence_length=7),
    "imitation": lambda: _copy("lstm", algorithm=Imitation),
    "tmaze": lambda: _model(make_vec("rmc_rl/TMaze-v0", 3, seed=1), "rims", batch_size=32),
    "previous": lambda: _model(
        make_vec("rmc_rl/Copy-v0", 4, seed=1, env_kwargs=COPY, previous_action_reward=True),
        "rmc",
        policy=MultiInputMemoryPolicy,
    ),
    "cartpole": lambda: _model(_normalized(), "lstm"),
    "partial": lambda: _model(make_vec("CartPole-v1", 4, seed=1, partial=PARTIAL), "lstm"),
    "processes": lambda: _model(VecNormalize(make_vec("CartPole-v1", 2, seed=1, processes=True), gamma=0.9), "lstm"),
    # the exploration matrices of the checkpoint hold for the whole rollout, or are drawn again at its first step
    "pendulum": lambda: _model(make_vec("Pendulum-v1", 2, seed=1), "rmc", use_sde=True),
    "pendulum resampled": lambda: _model(make_vec("Pendulum-v1", 2, seed=1), "rmc", use_sde=True, sde_sample_freq=8),
    "frames": lambda: _model(_framestack(), "lstm", use_sde=True),
    "masks": lambda: _model(make_vec(MASKED, 2, seed=1), "gtrxl"),
    "stock": lambda: _model(_normalized(), "rmc", StockRecurrentPPO),
}


class Kept(KVWriter):
    """Keeps what is logged, apart from times."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, Any], step: int = 0) -> None:
        times = ("time/fps", "time/time_elapsed")
        self.rows.append({name: value for name, value in key_values.items() if name not in times})

    def close(self) -> None:
        pass


def train(model: Any, steps: int, checkpoints: Checkpoints | None = None, again: bool = False) -> dict[str, Any]:
    """Train, and return weights, optimizer and the rows that were logged."""
    kept = Kept()
    model.set_logger(Logger(None, [kept]))
    model.learn(steps, callback=checkpoints, reset_num_timesteps=not again)
    model.get_env().close()
    return dict(weights=model.policy.state_dict(), optimizer=model.policy.optimizer.state_dict(), rows=kept.rows)


def stop(case: str, folder: Path) -> dict[str, Any]:
    """Train a case until it is stopped after ``STOPPED_AFTER`` rollouts."""
    model = CASES[case]()
    rollout = N_STEPS * model.n_envs
    checkpoints = Checkpoints(folder, None, should_stop=lambda: model.num_timesteps >= STOPPED_AFTER * rollout)
    return train(model, ROLLOUTS * rollout, checkpoints)


def resume(case: str, folder: Path) -> dict[str, Any]:
    """Continue a case that was stopped, to its end."""
    model, checkpoints = CASES[case](), Checkpoints(folder)
    return train(model, checkpoints.resume(model), checkpoints, again=True)


if __name__ == "__main__":
    root = Path(sys.argv[1])
    torch.set_num_threads(1)
    for name in sys.argv[2:]:
        torch.save(resume(name, root / name / "checkpoints"), root / name / "resumed.pt")
