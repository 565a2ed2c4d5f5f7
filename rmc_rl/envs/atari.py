"""
Atari on ale-py's own vector environment: emulators and preprocessing in C++ threads, behind an SB3 ``VecEnv``.

Preprocessing: Mnih et al., "Human-level control through deep reinforcement learning", 2015; sticky actions: Machado
et al., "Revisiting the Arcade Learning Environment", 2018, https://arxiv.org/abs/1709.06009.
"""

from typing import Any

import numpy as np
from ale_py import AtariVectorEnv
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs

from rmc_rl.envs.vec_env import SameStepVecEnv
from rmc_rl.errors import UsageError, require, require_truth, require_whole


def is_atari(spec: EnvSpec) -> bool:
    """Whether an id belongs to ale-py."""
    return spec.entry_point == "ale_py.env:AtariEnv"


class AtariVecEnv(SameStepVecEnv):
    """
    Copies of an Atari game with the usual preprocessing and no frame stack: memory is the core's job.

    What the id promises is kept: ``ALE/<Game>-v5`` has sticky actions (0.25) and frame skip 4,
    ``<Game>NoFrameskip-v4`` no sticky actions (the skip of 4 is then the preprocessing's).
    Observations are ``(stack_num, img_height, img_width)`` uint8, with three channels per frame where not ``grayscale``.
    The agent trains on clipped rewards; ``info["episode"]`` counts the raw score of the whole game.

    :param spec: of an id of ale-py
    :param num_envs: ``B``, copies side by side
    :param img_height: pixels
    :param img_width: pixels
    :param grayscale: one channel instead of three
    :param stack_num: frames per observation
    :param frameskip: emulator frames per step; None: what the id says, and 4 for ids without a skip
    :param maxpool: take the larger value of each pixel in the last two frames of a step, against flicker
    :param noop_max: an episode starts after a random number of empty actions, at most this many
    :param use_fire_reset: press fire at the start of an episode in games that wait for it
    :param episodic_life: a lost life ends the episode for the agent while the game goes on (ale-py: ``life_loss_info``;
        what ale-py calls ``episodic_life`` restarts the game)
    :param reward_clipping: train on the sign of the rewards
    :param repeat_action_probability: that the last action is taken again instead of the chosen one; None: what the id says
    :param full_action_space: all 18 actions instead of the game's own
    :param max_num_frames_per_episode: emulator frames after which an episode is truncated; None: what the id says (108,000)
    :param num_threads: C++ threads; 0: chosen by ale-py
    :raises UsageError: for an id with a random frame skip, or a value outside these rules
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
        counts = dict(num_envs=num_envs, img_height=img_height, img_width=img_width, stack_num=stack_num, frameskip=frameskip)
        counts |= dict(max_num_frames_per_episode=max_num_frames_per_episode)
        for name, value in counts.items():
            require_whole(name, value)
        for name, value in dict(noop_max=noop_max, num_threads=num_threads).items():
            require_whole(name, value, at_least=0)
        flags = dict(grayscale=grayscale, maxpool=maxpool, use_fire_reset=use_fire_reset, episodic_life=episodic_life)
        flags |= dict(reward_clipping=reward_clipping, full_action_space=full_action_space)
        for name, flag in flags.items():
            require_truth(name, flag)
        number = isinstance(repeat_action_probability, int | float) and not isinstance(repeat_action_probability, bool)
        require(
            number and 0 <= repeat_action_probability <= 1,
            "repeat_action_probability must lie in [0, 1]",
            repeat_action_probability,
        )

        self.reward_clipping, self.episodic_life = reward_clipping, episodic_life
        vector = AtariVectorEnv(
            game,
            num_envs,
            num_threads=num_threads,
            max_num_frames_per_episode=max_num_frames_per_episode,
            repeat_action_probability=repeat_action_probability,
            full_action_space=full_action_space,
            autoreset_mode=AutoresetMode.SAME_STEP,
            img_height=img_height,
            img_width=img_width,
            grayscale=grayscale,
            stack_num=stack_num,
            frameskip=frameskip,
            maxpool=maxpool,
            noop_max=noop_max,
            life_loss_info=episodic_life,
            reward_clipping=False,  # done here, for the statistics count the raw score
            use_fire_reset=use_fire_reset,
        )
        self.grayscale = grayscale
        self._frames_before_game = np.zeros(num_envs, dtype=np.int32)
        super().__init__(vector)
        if not grayscale:
            shape = (stack_num * 3, img_height, img_width)
            self.observation_space = spaces.Box(0, 255, shape, np.uint8)

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
        # After a game the infos are the new game's, so its lives say nothing; but the frames played before it have grown.
        before = info["frame_number"] - info["episode_frame_number"]
        over: np.ndarray = before != self._frames_before_game
        self._frames_before_game = before
        return over

    def began(self, info: dict[str, Any]) -> None:
        self._frames_before_game = info["frame_number"] - info["episode_frame_number"]
