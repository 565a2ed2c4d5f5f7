"""
What the adapters share: tasks, settings that are matched, the arguments of an adapter, and the clock.

An adapter prints JSON lines on its standard output, and nothing else: what the peer prints goes to the standard error.

* ``{"versions": {...}}`` after the imports;
* ``{"progress": [steps, seconds, return]}`` from time to time;
* ``{"result": {...}}`` at the end, see :meth:`Clock.finish`.

Seconds count from the start of the process, so that imports and compilation belong to them. A return is the mean of the last
100 training episodes of all copies. Both are taken where the worlds are stepped, which is the same place for every peer.
"""

import argparse
import json
import math
import os
import platform
import sys
import time
from collections import deque
from collections.abc import Sequence
from importlib import metadata
from typing import Any, NamedTuple, NoReturn

import numpy as np

from peers.worlds import Array, CartPoleWorld, CopyWorld, Step, World

EPISODES = 100  # over which a return is averaged
POINTS = 50  # of a curve
SETTINGS = ("recommended", "matched")


class Task(NamedTuple):
    """A world, and what is asked."""

    world: type[World]
    num_envs: int
    steps: int  # of all copies together
    threshold: float  # return
    title: str


TASKS = {
    "copy": Task(CopyWorld, 64, 1_000_000, 0.95, "copy"),
    "cartpole": Task(CartPoleWorld, 8, 150_000, 475, "CartPole without velocities"),
}


class Matched(NamedTuple):
    """The settings that are the same for all peers, as far as a peer has them; those that it lacks are named in its file."""

    width: int  # of the memory, and of each layer beside it
    n_steps: int  # of each copy per rollout, and of a training sequence
    learning_rate: float  # constant
    n_epochs: int
    batch_size: int  # transitions of a minibatch
    gamma: float
    gae_lambda: float
    ent_coef: float  # constant
    clip_range: float = 0.2
    vf_coef: float = 0.5
    max_grad_norm: float = 0.5


MATCHED = {
    "copy": Matched(64, 128, 4e-3, 8, 1024, gamma=0.0, gae_lambda=0.95, ent_coef=0.02, clip_range=0.1),
    "cartpole": Matched(64, 128, 1e-3, 10, 256, gamma=0.99, gae_lambda=0.98, ent_coef=0.0, max_grad_norm=1.0),
}


class Clock:
    """
    Worlds under a clock: counts steps, keeps the returns of episodes, and ends the process when its steps or time are over.

    :param arguments: of the adapter, see :func:`begin`
    :param report: a file for the JSON lines
    """

    def __init__(self, arguments: argparse.Namespace, report: Any):
        self.report = report
        self.task = TASKS[arguments.task]
        self.budget, self.limit, self.began = arguments.steps, arguments.limit, arguments.began
        self.steps = self.episodes = 0
        self.rollout = 0  # steps of all copies before the first update; the adapter sets it
        self.first_update: float | None = None  # seconds
        self.first_update_steps = 0
        self.reached: tuple[int, float] | None = None  # steps and seconds
        self.best = -math.inf
        self.window: deque[float] = deque(maxlen=EPISODES)

    def say(self, **line: Any) -> None:
        """Print a line."""
        print(json.dumps(line), file=self.report, flush=True)

    def seconds(self) -> float:
        """Since the process started."""
        return time.monotonic() - float(self.began)

    @property
    def mean_return(self) -> float | None:
        """Of the last episodes; None before there are enough."""
        return sum(self.window) / EPISODES if len(self.window) == EPISODES else None

    def before(self) -> None:
        """A step begins. The first one after a rollout shows that an update is done."""
        if self.first_update is None and 0 < self.rollout <= self.steps:
            self.first_update, self.first_update_steps = self.seconds(), self.steps

    def after(self, steps: int, returns: Sequence[float]) -> None:
        """
        A step, or several, are done.

        :param steps: of all copies
        :param returns: of the episodes that ended, in their order
        """
        before, self.steps = self.steps, self.steps + steps
        self.episodes += len(returns)
        self.window.extend(returns)
        mean = self.mean_return
        if returns and mean is not None:
            self.best = max(self.best, mean)
            if self.reached is None and mean >= self.task.threshold:
                self.reached = (self.steps, self.seconds())
        if self.steps >= self.budget or self.seconds() > self.limit:
            self.finish()
        if before * POINTS // self.budget < self.steps * POINTS // self.budget:
            self.say(progress=[self.steps, round(self.seconds(), 3), mean])

    def finish(self) -> NoReturn:
        """Say the result and end the process, wherever the peer is: nothing that it does afterwards belongs to the result."""
        seconds, mean = self.seconds(), self.mean_return
        found: dict[str, Any] = dict(steps=self.steps, episodes=self.episodes, seconds=seconds, mean_return=mean)
        found["best_return"] = self.best if math.isfinite(self.best) else None
        found["reached_steps"], found["reached_seconds"] = self.reached or (None, None)
        found["first_update_seconds"] = self.first_update
        if self.first_update is not None and self.steps > self.first_update_steps:
            found["steps_per_second"] = (self.steps - self.first_update_steps) / (seconds - self.first_update)
        self.say(result=found)
        os._exit(0)


class Clocked:
    """
    A world whose steps are counted.

    :param clock: which counts
    :param num_envs: ``B``
    :param seed: of the world
    """

    def __init__(self, clock: Clock, num_envs: int, seed: int):
        self.world, self.clock, self.num_envs = clock.task.world(num_envs, seed), clock, num_envs
        self.num_inputs, self.num_actions = self.world.num_inputs, self.world.num_actions
        self.returns = np.zeros(num_envs)

    def reset(self) -> Array:
        """As :meth:`World.reset`."""
        self.returns[:] = 0
        return self.world.reset()

    def step(self, actions: Array) -> Step:
        """As :meth:`World.step`."""
        self.clock.before()
        step = self.world.step(actions)
        self.returns += step.rewards
        ended = step.terminated | step.truncated
        returns = self.returns[ended].tolist()
        self.returns[ended] = 0
        self.clock.after(self.num_envs, returns)
        return step


class Run(NamedTuple):
    """What an adapter was asked for."""

    task: str
    matched: Matched | None  # None: the settings that the project recommends
    steps: int
    seed: int
    threads: int
    variant: str
    clock: Clock

    def make(self) -> Clocked:
        """The worlds of this run."""
        return Clocked(self.clock, self.num_envs, self.seed)

    @property
    def num_envs(self) -> int:
        """Copies of the world."""
        return self.clock.task.num_envs

    def versions(self, *packages: str) -> None:
        """Say the versions of these packages; the first is the peer."""
        found = {package: metadata.version(package) for package in packages}
        self.clock.say(versions=found | {"Python": platform.python_version()})


def begin(doc: str | None) -> Run:
    """
    Read the arguments of an adapter, and keep the standard output for the JSON lines.

    :param doc: the adapter's docstring
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, default="copy")
    parser.add_argument("--settings", choices=SETTINGS, default="recommended")
    parser.add_argument("--variant", default="", help="of the peer, where it has several")
    parser.add_argument("--steps", type=int, help="of all copies; default: those of the task")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--limit", type=float, default=math.inf, help="seconds, after which the run ends as it is")
    parser.add_argument("--began", type=float, default=time.monotonic(), help="when the process was started")
    arguments = parser.parse_args()
    arguments.steps = arguments.steps or TASKS[arguments.task].steps
    report = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.argv[1:] = []  # peers read it too
    matched = MATCHED[arguments.task] if arguments.settings == "matched" else None
    clock = Clock(arguments, report)
    return Run(arguments.task, matched, arguments.steps, arguments.seed, arguments.threads, arguments.variant, clock)
