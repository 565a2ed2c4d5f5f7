"""
The batched-world contract: many copies of a world in a few tensors, and the single NumPy world made from the same code.

Shapes: ``B`` worlds side by side (``num_envs``).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from rmc_rl.errors import check_keywords, require, require_whole


class BatchedWorld(VectorEnv[Tensor, Tensor | np.ndarray, Tensor], ABC):
    """
    ``B`` copies of a world, whose state, observations and rewards are tensors with a leading dimension ``B``.

    A world is a subclass with three methods, :meth:`_draw`, :meth:`_advance` and :meth:`_observe`; this class does
    seeding, autoreset and the Gymnasium interface. Episodes reset in the step that ends them
    (``AutoresetMode.SAME_STEP``): the observation returned is the new episode's first, the ended one's last is in
    ``info["final_obs"]``, valid where ``info["_final_obs"]``. On the CPU both keys are there only when an episode
    ended; elsewhere always, so that no step waits for the device.

    One generator draws for all copies: ``reset(seed=...)`` fixes the whole batch, and a copy's episodes depend on ``B``.

    :param num_envs: ``B``
    :param observation_space: of one copy
    :param action_space: of one copy
    :param device: where the tensors live
    :param render_mode: None or one of ``metadata["render_modes"]``
    :raises UsageError: for ``num_envs`` below 1 or an unknown render mode
    """

    truncates: ClassVar[bool] = False  # whether episodes may be truncated

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": [], "render_fps": 4}

    def __init__(
        self,
        num_envs: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: torch.device | str = "cpu",
        render_mode: str | None = None,
    ):
        require_whole("num_envs", num_envs)
        modes = [None, *self.metadata["render_modes"]]
        require(render_mode in modes, f"render_mode must be one of {modes}", render_mode)
        self.num_envs = num_envs
        self.single_observation_space, self.single_action_space = observation_space, action_space
        self.observation_space = batch_space(observation_space, num_envs)
        self.action_space = batch_space(action_space, num_envs)
        self.device = torch.device(device)
        self._is_on_cpu = self.device.type == "cpu"
        self.render_mode = render_mode
        self.generator = torch.Generator(self.device)
        self._is_seeded = self._is_reset = False

    @abstractmethod
    def _draw(self, count: int) -> dict[str, Tensor]:
        """
        Fresh episodes: all of a copy's state, which is kept in attributes of these names.

        :param count: how many; ``B`` at the first call, then as many as have ended (on the CPU) or ``B`` (elsewhere, where
            counting them would wait for the device)
        :return: attribute -> tensor ``(count, ...)`` in memory of its own, on :attr:`device`
        """

    @abstractmethod
    def _advance(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """
        One step of all copies, without autoreset.

        :param actions: ``(B, *action_shape)``, whole numbers as int64
        :return: rewards ``(B,)`` float32, terminated ``(B,)`` bool, truncated ``(B,)`` bool
        """

    @abstractmethod
    def _observe(self) -> Tensor:
        """What the agents see now, ``(B, *observation_shape)``, in memory of its own."""

    def _picture(self, index: int) -> np.ndarray:
        """
        What a person sees of a copy; to be written by worlds that have render modes.

        :param index: which copy
        :return: ``(height, width, 3)`` uint8
        """
        raise NotImplementedError

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        """
        Begin a new episode in all copies.

        :param seed: fixes everything random from here on; None goes on with the present generator
        :param options: unused
        :return: observations ``(B, *observation_shape)`` and an empty info
        """
        super().reset(seed=seed)
        if seed is not None or not self._is_seeded:
            self.generator.manual_seed(int(self.np_random.integers(2**62)))
            self._is_seeded = True
        for name, drawn in self._draw(self.num_envs).items():
            setattr(self, name, drawn)
        self._is_reset = True
        return self._observe(), {}

    def step(self, actions: Tensor | np.ndarray) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
        """
        One step of all copies; episodes that end begin anew at once.

        :param actions: ``(B, *action_shape)``, a tensor or an array
        :return: observations, rewards ``(B,)``, terminated ``(B,)``, truncated ``(B,)``, info
        :raises gymnasium.error.ResetNeeded: before the first reset
        """
        if not self._is_reset:
            raise gymnasium.error.ResetNeeded("reset() must be called before step()")
        actions = torch.as_tensor(actions, device=self.device)
        rewards, terminated, truncated = self._advance(actions if actions.is_floating_point() else actions.long())
        done = terminated | truncated
        if self._is_on_cpu and not done.any():
            return self._observe(), rewards, terminated, truncated, {}
        info = {"final_obs": self._observe(), "_final_obs": done}
        self._begin(done)
        return self._observe(), rewards, terminated, truncated, info

    def render(self) -> tuple[np.ndarray, ...] | None:
        """
        A picture of each copy.

        :return: ``B`` frames ``(height, width, 3)`` uint8, or None without a render mode
        :raises gymnasium.error.ResetNeeded: before the first reset
        """
        if self.render_mode is None:
            return None
        if not self._is_reset:
            raise gymnasium.error.ResetNeeded("reset() must be called before render()")
        return tuple(self._picture(index) for index in range(self.num_envs))

    def _begin(self, rows: Tensor) -> None:
        """
        Begin a new episode in some copies and leave the others as they are.

        :param rows: ``(B,)`` bool
        """
        self._replace(rows, lambda copies: self._draw(len(copies)))

    def _replace(self, rows: Tensor, draw: Callable[[Tensor], dict[str, Tensor]]) -> None:
        """
        Give some copies another state and leave the others as they are.

        :param rows: which copies, ``(B,)`` bool
        :param draw: from the numbers of copies ``(n,)`` to their state, as :meth:`_draw` returns it, or a part of it. On the
            CPU it is called for those copies, if there are any; elsewhere, where counting them would wait, for all
        """
        if self._is_on_cpu:
            copies = rows.nonzero().squeeze(1)
            for name, drawn in draw(copies).items() if len(copies) else ():
                getattr(self, name)[copies] = drawn
            return
        for name, drawn in draw(torch.arange(self.num_envs, device=self.device)).items():
            # (B,) -> (B, 1, ...)
            chosen = rows.view(-1, *[1] * (drawn.dim() - 1))
            setattr(self, name, torch.where(chosen, drawn, getattr(self, name)))


class SingleWorld(gymnasium.Env[Any, Any]):
    """
    One copy of a batched world as an ordinary Gymnasium environment with NumPy observations.

    A subclass names its ``World`` and the world's ``metadata``.

    :param render_mode: None or one of ``metadata["render_modes"]``
    :param kwargs: the world's own keywords
    :raises UsageError: for a keyword the world does not have, or a value it does not take
    """

    World: ClassVar[type[BatchedWorld]]

    def __init__(self, render_mode: str | None = None, **kwargs: Any):
        check_keywords(f"keyword of {self.World.__name__}", self.World, kwargs, given=("num_envs", "render_mode"))
        self.world = self.World(num_envs=1, render_mode=render_mode, **kwargs)
        self.render_mode = render_mode
        self.observation_space = self.world.single_observation_space
        self.action_space = self.world.single_action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.world.reset(seed=seed, options=options)
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        # without autoreset: the end of an episode stays to be seen and drawn
        actions = torch.as_tensor(np.asarray(action)[None], device=self.world.device)
        reward, terminated, truncated = self.world._advance(actions)
        return self._observation(), float(reward), bool(terminated), bool(truncated), {}

    def _observation(self) -> Any:
        return self.world._observe()[0].cpu().numpy()[()]

    def render(self) -> Any:
        frames = self.world.render()
        return None if frames is None else frames[0]

    def close(self) -> None:
        self.world.close()
