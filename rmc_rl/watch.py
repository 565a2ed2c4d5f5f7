"""
Film an episode of a trained agent: python -m rmc_rl.watch run=<folder> ...

  python -m rmc_rl.watch run=runs/rmc_rl-Copy-v0/rmc/20261120-210000-seed0            a film, MP4
  python -m rmc_rl.watch run=<folder> format=html                                     a page on which steps can be chosen
  python -m rmc_rl.watch run=<folder> format=png why=12                               a still; which step decided action 12?
  python -m rmc_rl.watch run=<folder> episodes=3 env_kwargs.delay=20 model=best       three films of a harder world

The film shows the world's own picture, what the agent saw, its memory over time, attention now, gates, action probabilities,
the value that the critic expects, and the reward so far. With why=<step> a strip shows how much each earlier observation
decided the action of that step: the size of the gradient of the action's log-probability.

Films lie in films/ of the run's folder, or of the model's folder if it belongs to no run. No window is needed. mp4 needs
imageio-ffmpeg (pip install 'rmc-rl[watch]'); gif, html and png do not. A run is read as data, as by rmc_rl.evaluate;
trust=true is needed for a model without a config.yaml, and for a run of somebody else, or from another machine, that names a
module, as in core=module:name.
"""

import os
import time
from contextlib import closing
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from rmc_rl.agents.panels import Panels
from rmc_rl.agents.policies import MlpMemoryPolicy
from rmc_rl.agents.recording import influence, record_episode
from rmc_rl.command_line.app import run_verb
from rmc_rl.command_line.devices import find_device
from rmc_rl.command_line.player import find_player, make_playing_env
from rmc_rl.command_line.progress import progress_bar, say
from rmc_rl.command_line.schema import WatchKeys
from rmc_rl.errors import UsageError, require
from rmc_rl.runs.folder import stamp
from rmc_rl.studies.canvas import fitted
from rmc_rl.studies.films import check_format, write_film, write_still

FPS = 10.0  # frames per second of an environment that does not state its own
MOST_FPS = 50.0  # of a film; more is not seen, and a GIF cannot have it
SAID = 3  # observations that are named as the most influential


def watch(config: DictConfig, _command: str | None = None) -> int:
    """
    Play episodes with a model and film them.

    :param config: checked; see ``configs/watch.yaml``
    :return: exit status 0
    :raises UsageError: for a mistake in the configuration, or a run that is damaged
    """
    check_format(config.format)
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame, which draws some environments, looks for a screen otherwise
    player = find_player(config, config.run, find_device(config.device), "films")
    policy = getattr(player.model, "policy", player.model)  # a policy has none
    require(isinstance(policy, MlpMemoryPolicy), "model must be one whose policy has a core", type(policy).__name__)
    env = make_playing_env(player, 1, config.seed, pictures=True)
    own_fps: Any = env.unwrapped.metadata.get("render_fps")
    fps = config.fps or min(float(own_fps or FPS), MOST_FPS)
    named, began = f"{player.env_id}, {player.core or type(policy.core).__name__.lower()}", stamp()
    torch.manual_seed(config.seed)  # of sampled actions
    with closing(env):
        for episode in range(1, config.episodes + 1):
            started = time.monotonic()
            with progress_bar(None, "steps") as bar:
                recording = record_episode(policy, env, config.deterministic, config.max_steps, fitted, bar.update)
            if recording.not_drawn and episode == 1:
                say(f"{player.env_id} cannot be drawn, so the film shows the rest: {recording.not_drawn}")
            why = None if config.why is None else (config.why, influence(policy, recording, config.why))
            panels = Panels(recording, policy, named, why)
            path = player.run.new_path("films", f"{began}-episode{episode}.{config.format}")
            try:
                if config.format == "png":
                    write_still(panels.sheet(config.why), path)
                else:
                    film = panels.film()
                    with progress_bar(len(film), "frames") as bar:
                        write_film(film, path, fps, bar.update)
            except OSError as error:
                raise UsageError(f"the film could not be written to '{path}': {error}") from None
            finally:
                if path.stat().st_size == 0:  # claimed, but not written
                    path.unlink()
            cut = "" if recording.ended else f", cut by max_steps={config.max_steps}"
            say(f"episode {episode}: {recording.length} steps{cut}, return {recording.rewards.sum():.3f}")
            if why is not None:
                _say_why(*why)
            say(f"written: {path} ({path.stat().st_size / 1e6:.1f} MB, {time.monotonic() - started:.1f} seconds)")
    return 0


def _say_why(step: int, influences: np.ndarray) -> None:
    """Name the steps whose observations decided an action."""
    total = float(influences.sum())
    if total == 0:
        say(f"why: no observation changes the probability of action {step}")
        return
    largest = np.argsort(-influences, kind="stable")[:SAID]
    named = ", ".join(f"step {index} ({influences[index] / total:.0%})" for index in largest.tolist())
    say(f"why action {step}: {named} of the gradient of its log-probability")


def main() -> None:
    """The command line."""
    run_verb(watch, "watch", __doc__ or "", WatchKeys)


if __name__ == "__main__":
    main()
