"""
Atari on ale-py's own vector environment (emulators and preprocessing in C++ threads) as an SB3 ``VecEnv``.

Preprocessing: Mnih et al., "Human-level control through deep reinforcement learning", 2015; sticky actions: Machado
et al., "Revisiting the Arcade Learning Environment", 2018, https://arxiv.org/abs/1709.06009.
"""

import math
import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from ale_py import AtariVectorEnv
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from rmc_rl.envs.parts.keywords import number, require_memory, whole
from rmc_rl.envs.vec_env import SameStepVecEnv
from rmc_rl.errors import UsageError, require, require_truth

RENDER_MODES = (None, "rgb_array")
_SCREEN = (160, 210)  # width and height of the game's screen, in pixels
_EMULATOR_FPS = 60
_MOST_INT = 2**31 - 1  # ale-py's numbers are C integers


def is_atari(spec: EnvSpec) -> bool:
    """Whether an id belongs to ale-py."""
    return spec.entry_point == "ale_py.env:AtariEnv"


class AtariVecEnv(SameStepVecEnv):
    """
    Copies of an Atari game with the usual preprocessing and no frame stack, because the core is the memory.

    The settings follow the id: ``ALE/<Game>-v5`` has sticky actions (0.25) and frame skip 4, ``<Game>NoFrameskip-v4`` has no
    sticky actions (the preprocessing adds the skip of 4). Observations are ``(stack_num, img_height, img_width)`` uint8, with
    three channels per frame if ``grayscale`` is false. The agent trains on clipped rewards; ``info["episode"]`` counts the raw
    score of the whole game.

    Pictures (``render_mode="rgb_array"``) show the game's own screen, 210 x 160 pixels in colour. ale-py's vector environment
    returns only the preprocessed frames, so a second one with the same seeds and actions plays the same games in full size.
    Then ``info["unclipped_reward"]`` has the game's own reward of each step.

    :param spec: of an id of ale-py
    :param num_envs: ``B``, number of copies
    :param img_height: pixels
    :param img_width: pixels
    :param grayscale: one channel instead of three
    :param stack_num: frames per observation
    :param frameskip: emulator frames per step; None: the id's frame skip, and 4 for ids without a skip
    :param maxpool: take the larger value of each pixel in the last two frames of a step, against flicker
    :param noop_max: an episode starts after a random number of empty actions, at most this many
    :param use_fire_reset: press fire at the start of an episode in games that wait for it
    :param episodic_life: a lost life ends the episode for the agent while the game continues (ale-py: ``life_loss_info``; the
        ``episodic_life`` of ale-py restarts the game)
    :param reward_clipping: train on the sign of the rewards
    :param repeat_action_probability: probability that the last action is repeated instead of the chosen one; None: the id's
    :param full_action_space: all 18 actions instead of the game's own
    :param max_num_frames_per_episode: emulator frames after which an episode is truncated; None: the id's (108,000)
    :param num_threads: C++ threads, at most as many as the machine has; 0: chosen by ale-py
    :param render_mode: None or "rgb_array"
    :raises UsageError: for an id with a random frame skip, or an invalid value
    """

    def __init__(
        self,
        spec: EnvSpec,
        num_envs: int = 1,
        *,
        img_height: int = 84,
        img_width: int = 84,
        grayscale: bool = True,
        stack_num: int = 1,
        frameskip: int | None = None,
        maxpool: bool = True,
        noop_max: int = 30,
        use_fire_reset: bool = True,
        episodic_life: bool = False,
        reward_clipping: bool = True,
        repeat_action_probability: float | None = None,
        full_action_space: bool = False,
        max_num_frames_per_episode: int | None = None,
        num_threads: int = 0,
        render_mode: str | None = None,
    ):
        game = spec.kwargs["game"]
        if frameskip is None:
            if not isinstance(spec.kwargs["frameskip"], int):
                v5 = f"ALE/{''.join(part.title() for part in game.split('_'))}-v5"
                raise UsageError(f"an Atari id must have a fixed frame skip, got '{spec.id}'; did you mean '{v5}'?")
            frameskip = 4 if spec.kwargs["frameskip"] == 1 else spec.kwargs["frameskip"]
        if repeat_action_probability is None:
            repeat_action_probability = spec.kwargs["repeat_action_probability"]
        if max_num_frames_per_episode is None:
            max_num_frames_per_episode = spec.kwargs["max_num_frames_per_episode"]
        num_envs, frameskip = whole("num_envs", num_envs), whole("frameskip", frameskip, at_most=_MOST_INT)
        img_height, img_width = whole("img_height", img_height), whole("img_width", img_width)
        stack_num, noop_max = whole("stack_num", stack_num), whole("noop_max", noop_max, at_least=0, at_most=_MOST_INT)
        max_frames = whole("max_num_frames_per_episode", max_num_frames_per_episode, at_most=_MOST_INT)
        num_threads = whole("num_threads", num_threads, at_least=0, at_most=os.cpu_count())
        repeat_action_probability = number("repeat_action_probability", repeat_action_probability, at_least=0, at_most=1)
        sizes = dict(num_envs=num_envs, stack_num=stack_num, img_height=img_height, img_width=img_width)
        require_memory(math.prod(sizes.values()) * (1 if grayscale else 3), **sizes)
        flags = dict(grayscale=grayscale, maxpool=maxpool, use_fire_reset=use_fire_reset, episodic_life=episodic_life)
        flags |= dict(reward_clipping=reward_clipping, full_action_space=full_action_space)
        for name, flag in flags.items():
            require_truth(name, flag)
        require(render_mode in RENDER_MODES, f"render_mode must be one of {list(RENDER_MODES)}", render_mode)

        self.reward_clipping, self.episodic_life, self.grayscale = bool(reward_clipping), bool(episodic_life), bool(grayscale)
        self._make_vector = partial(
            AtariVectorEnv,
            game,
            num_envs,
            num_threads=num_threads,
            max_num_frames_per_episode=max_frames,
            repeat_action_probability=repeat_action_probability,
            full_action_space=bool(full_action_space),
            autoreset_mode=AutoresetMode.SAME_STEP,
            frameskip=frameskip,
            maxpool=bool(maxpool),
            noop_max=noop_max,
            life_loss_info=self.episodic_life,
            reward_clipping=False,  # done in reward(), because the statistics count the raw score
            use_fire_reset=bool(use_fire_reset),
        )
        vector = self._make_vector(img_height=img_height, img_width=img_width, grayscale=self.grayscale, stack_num=stack_num)
        self._frames_before_game = np.zeros(num_envs, dtype=np.int32)
        vector.render_mode = render_mode
        vector.metadata = {**vector.metadata, "render_fps": _EMULATOR_FPS // frameskip}
        self._screens: AtariVectorEnv | None = None  # plays the same games in full size, for pictures
        self._frames: np.ndarray | None = None  # (B, 1, height, width, 3), what it returned last
        super().__init__(vector)
        if not grayscale:
            shape = (stack_num * 3, img_height, img_width)
            self.observation_space = spaces.Box(0, 255, shape, np.uint8)

    def reset(self) -> VecEnvObs:
        if self.vector.render_mode is None:
            self._close_screens()
        elif self._screens is None:
            width, height = _SCREEN
            self._screens = self._make_vector(img_height=height, img_width=width, grayscale=False, stack_num=1)
            if self._seeds[0] is None:
                self.seed()  # the same for both
        if self._screens is not None:
            self._frames, _ = self._screens.reset(seed=self._seeds[0])
        return super().reset()

    def step_wait(self) -> VecEnvStepReturn:
        if self._screens is None:
            return super().step_wait()
        self._frames, raw, _, _, self._screens_info = self._screens.step(self._actions)
        observations, rewards, dones, infos = super().step_wait()
        for info, reward in zip(infos, raw, strict=True):
            info["unclipped_reward"] = float(reward)
        return observations, rewards, dones, infos

    def final_frames(self, info: dict[str, Any]) -> Sequence[np.ndarray] | None:
        if self._screens is None:
            return None
        final = self._screens_info.get("final_obs", self._frames)  # a lost life does not end the game
        return [np.array(frames[-1]) for frames in final]  # type: ignore[union-attr]  # set by every step

    def get_images(self) -> Sequence[np.ndarray | None]:
        if self.vector.render_mode is None:
            return [None] * self.num_envs
        if self._frames is None:
            raise gymnasium.error.ResetNeeded("reset() must be called before render()")
        return [np.array(frames[-1]) for frames in self._frames]

    def close(self) -> None:
        self._close_screens()
        super().close()

    def _close_screens(self) -> None:
        if self._screens is not None:
            self._screens.close()
        self._screens = self._frames = None

    def observation(self, observation: Any) -> VecEnvObs:
        frames = np.asarray(observation)
        if not self.grayscale:
            # (B, stack, height, width, 3) -> (B, stack * 3, height, width)
            frames = frames.transpose(0, 1, 4, 2, 3)
            frames = frames.reshape(len(frames), -1, *frames.shape[3:])
        return frames

    def reward(self, rewards: np.ndarray) -> np.ndarray:
        return super().reward(np.sign(rewards)) if self.reward_clipping else super().reward(rewards)

    def episode_over(self, terminated: np.ndarray, truncated: np.ndarray, info: dict[str, Any]) -> np.ndarray:
        if not self.episodic_life:
            return super().episode_over(terminated, truncated, info)
        # After a game the infos are those of the new game. Only the number of frames before it shows that a game ended.
        before = info["frame_number"] - info["episode_frame_number"]
        over: np.ndarray = before != self._frames_before_game
        self._frames_before_game = before
        return over

    def on_reset(self, info: dict[str, Any]) -> None:
        self._frames_before_game = info["frame_number"] - info["episode_frame_number"]
