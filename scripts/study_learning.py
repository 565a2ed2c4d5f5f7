"""
One setting of RecurrentPPO on a world, over time: python scripts/study_learning.py key=value ...

Prints a line of JSON every ``every`` steps: steps, seconds, return (mean of the last 200 training episodes), entropy in nats,
gradient norm before clipping, approximate KL, clip fraction, value loss, explained variance; then the return of the
deterministic policy on 512 new episodes. Keys, with values as Python literals:

* ``algo.<argument of RecurrentPPO>``, ``policy.<argument of the policy>``, ``core.<argument of the core>``,
  ``env_kwargs.<keyword of the world>``. Defaults: those of ``python -m rmc_rl.train``.
  ``algo.learning_rate_schedule`` and ``algo.ent_coef_schedule`` may be "constant" or "linear" (to 0).
* ``env`` (an id), ``core``, ``n_envs``, ``seeds`` (a list), ``steps``, ``every``, ``stop`` (a return: train no further once 5
  prints in a row reach it), ``out`` (a file to which the lines are appended).
"""

import ast
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from hydra import compose, initialize_config_module
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from rmc_rl import RecurrentPPO, make_vec
from rmc_rl.command_line.agent import plain
from rmc_rl.envs.make_vec import env_family
from rmc_rl.runs.normalization import normalize

LOGGED = ("entropy_loss", "gradient_norm", "approx_kl", "clip_fraction", "value_loss", "explained_variance", "ent_coef")
SETTINGS: dict[str, Any] = dict(
    env="rmc_rl/Copy-v0", core="gru", n_envs=None, seeds=[0], steps=1_000_000, every=50_000, stop=None, out=None
)


def make(env: str, n_envs: int, seed: int, keywords: dict[str, Any], training: VecEnv | None = None) -> VecEnv:
    """Copies of a world to evaluate in; ``training``: the environment whose statistics to use, if it was normalised."""
    made = make_vec(env, n_envs, seed=seed, env_kwargs=keywords)
    if not isinstance(training, VecNormalize):
        return made
    normalised = VecNormalize(made, training=False, norm_reward=False)
    normalised.obs_rms = training.obs_rms
    return normalised


class Curve(BaseCallback):
    """Writes a line of numbers every so many steps, and stops once the return is reached."""

    def __init__(self, every: int, stop: float | None, base: dict[str, Any], files: list[TextIO]):
        super().__init__()
        self.every, self.stop, self.base, self.files = every, stop, base, files
        self.next, self.reached, self.begin = every, 0, time.time()

    def _on_step(self) -> bool:
        return self.reached < 5

    def _on_rollout_end(self) -> None:
        if self.num_timesteps < self.next:
            return
        self.next += self.every
        values = {name: self.logger.name_to_value.get(f"train/{name}") for name in LOGGED}
        returns = [info["r"] for info in self.model.ep_info_buffer or ()]
        mean = float(np.mean(returns)) if returns else float("nan")
        self.reached = self.reached + 1 if self.stop is not None and mean >= self.stop else 0
        self.write(steps=self.num_timesteps, seconds=round(time.time() - self.begin, 1), episode_return=mean, **values)

    def write(self, **values: Any) -> None:
        """Write a line to all files."""
        rounded = {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in values.items()}
        for file in self.files:
            print(json.dumps(self.base | rounded), file=file, flush=True)


def run(seed: int, setting: dict[str, Any], parts: dict[str, dict[str, Any]], files: list[TextIO], words: str) -> None:
    """Train one seed and evaluate it."""
    family = env_family(setting["env"])
    with initialize_config_module("rmc_rl.configs", version_base="1.3"):
        defaults = compose("train", overrides=[f"family={family}", f"core={setting['core']}"])
    algo, policy, core = (plain(defaults[name]) | parts[name] for name in ("algo", "policy", "core"))
    del algo["name"], policy["previous_action_reward"]
    for name in ("learning_rate", "ent_coef"):
        if algo.pop(f"{name}_schedule") == "linear":
            algo[name] = LinearSchedule(algo[name], 0.0, 1.0)
    if isinstance(policy.get("activation_fn"), str):
        policy["activation_fn"] = getattr(torch.nn, policy["activation_fn"])
    n_envs = setting["n_envs"] or defaults.n_envs
    env = normalize(make(setting["env"], n_envs, seed, parts["env_kwargs"]), defaults.normalize, algo.get("gamma", 0.99))
    policy |= dict(core=core.pop("name"), core_kwargs=core)
    model = RecurrentPPO("MlpMemoryPolicy", env, seed=seed, device="cpu", policy_kwargs=policy, stats_window_size=200, **algo)
    curve = Curve(setting["every"], setting["stop"], dict(setting=words, seed=seed), files)
    model.learn(setting["steps"], callback=curve)
    evaluated = make(setting["env"], n_envs, 1000 + seed, parts["env_kwargs"], env)
    episodes = 32 if isinstance(env, VecNormalize) else 512  # control needs hundreds of steps
    final, _ = evaluate_policy(model, evaluated, episodes, warn=False)
    curve.write(steps=model.num_timesteps, seconds=round(time.time() - curve.begin, 1), evaluated=np.mean(final).item())


def main() -> None:
    torch.set_num_threads(1)
    setting = dict(SETTINGS)
    parts: dict[str, dict[str, Any]] = {name: {} for name in ("algo", "policy", "core", "env_kwargs")}
    words = []
    for word in sys.argv[1:]:
        key, value = word.split("=", 1)
        try:
            parsed = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            parsed = value
        group, _, name = key.partition(".")
        (parts[group] if name else setting)[name or key] = parsed
        if key not in ("out", "seeds", "every"):
            words.append(word)
    unknown = set(setting) - set(SETTINGS)
    if unknown:
        sys.exit(f"unknown keys {sorted(unknown)}; known: {', '.join(SETTINGS)}, algo.*, policy.*, core.*, env_kwargs.*")
    with Path(setting["out"] or os.devnull).open("a") as out:
        for seed in setting["seeds"]:
            run(seed, setting, parts, [sys.stdout, out], " ".join(words))


if __name__ == "__main__":
    main()
