"""What happens every so many steps of training: evaluations in an environment of their own, and pictures of the memory."""

import random
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Image
from stable_baselines3.common.vec_env import VecEnv

from rmc_rl.agents.evaluation import evaluate_episodes
from rmc_rl.agents.policies import MlpMemoryPolicy
from rmc_rl.runs.generators import kept_generators
from rmc_rl.studies.heat_map import heat_maps

LONGEST_PICTURE = 1000  # steps of an episode
NOT_IN_TEXT = ("stdout", "log", "json", "csv")


class _Every(BaseCallback):
    """
    Acts at the end of the first rollout after every so many steps, without an effect on training.

    :param env: the environment to play in
    :param every: steps of training, all copies together
    :param seed: of the environment and of the sampled actions: each time the same
    """

    def __init__(self, env: VecEnv, every: int, seed: int):
        super().__init__()
        self.env, self.every, self.seed = env, every, seed
        self.acted_at = 0  # steps

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        steps = self.model.num_timesteps
        if steps // self.every <= self.acted_at // self.every:
            return
        self.acted_at = steps
        with kept_generators():
            random.seed(self.seed)
            np.random.seed(self.seed % 2**32)
            torch.manual_seed(self.seed)
            self.env.seed(self.seed)
            self.act()

    @abstractmethod
    def act(self) -> None:
        """Play and record; the random generators are put back afterwards."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"acted_at": self.acted_at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Go on from a checkpoint.

        :param state: what :meth:`state_dict` returned
        """
        self.acted_at = int(state["acted_at"])


class Evaluations(_Every):
    """
    Evaluates the policy while it trains, and logs ``eval/mean_reward`` and ``eval/mean_ep_length`` as SB3's ``EvalCallback``.

    The episodes are the same ones each time, as far as the environment follows its seed: two evaluations differ by the policy
    alone. Evaluated is the policy that played the rollout that has just ended.

    :param env: the environment to play in
    :param every: steps of training, all copies together
    :param seed: of the environment and of the sampled actions
    :param episodes: of each evaluation
    :param deterministic: take the likeliest action instead of a sample
    :param patience: evaluations without a better one after which training should end; None: it should not
    """

    def __init__(
        self,
        env: VecEnv,
        every: int,
        seed: int,
        episodes: int,
        deterministic: bool,
        patience: int | None = None,
    ):
        super().__init__(env, every, seed)
        self.episodes, self.deterministic, self.patience = episodes, deterministic, patience
        self.at_best: Callable[[], object] = lambda: None  # called after an evaluation that was better than all before
        self.best = -np.inf  # mean return
        self.last: float | None = None  # mean return of the last evaluation
        self.waited = 0  # evaluations since the best one

    def act(self) -> None:
        found = evaluate_episodes(self.model, self.env, self.episodes, self.deterministic)
        self.last = float(np.mean(found.returns))
        self.logger.record("eval/mean_reward", self.last)
        self.logger.record("eval/mean_ep_length", float(np.mean(found.lengths)))
        self.waited += 1
        if self.last > self.best:
            self.best, self.waited = self.last, 0
            self.at_best()

    def is_out_of_patience(self) -> bool:
        """Whether training should end."""
        return self.patience is not None and self.waited >= self.patience

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "best": self.best, "last": self.last, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.best, self.last, self.waited = float(state["best"]), state["last"], int(state["waited"])


class MemoryPicture(_Every):
    """
    Plays one episode and logs a picture of the memory in it, ``memory/episode``: a heat map of each tensor that the core
    shows, steps from left to right.
    """

    def act(self) -> None:
        self.logger.record("memory/episode", Image(heat_maps(self._looks()), "HWC"), exclude=NOT_IN_TEXT)

    def _looks(self) -> dict[str, np.ndarray]:
        """What the core shows in an episode: arrays ``(T, ...)`` by name."""
        policy: MlpMemoryPolicy = self.model.policy  # type: ignore[assignment]
        observation: Any = self.env.reset()
        state, start, seen = None, np.ones(1, dtype=bool), []
        for _ in range(LONGEST_PICTURE):
            seen.append(observation)
            action, state = policy.predict(observation, state, start, deterministic=True)
            observation, _, start, _ = self.env.step(action)
            if start[0]:
                break
        if isinstance(seen[0], Mapping):
            observations: Any = {name: np.stack([each[name] for each in seen]) for name in seen[0]}
        else:
            observations = np.stack(seen)  # (T, 1, ...)
        with torch.no_grad():
            looks = policy.inspect(observations)
        return {name: value[:, 0].float().cpu().numpy() for name, value in looks.items() if name != "output"}
