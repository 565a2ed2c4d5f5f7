"""
From a recorded episode to the panels of its film.

Every tensor that a core shows has a place: its state is the memory over time, gates run over time below it, attention is a
matrix at the present step. What the axes of a tensor mean says the core (:meth:`rmc_rl.Core.axes`), so that a core of the
user's own is shown in the same way.
"""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from torch import Tensor

from rmc_rl.agents.cores.base import Axis
from rmc_rl.agents.policies import MlpMemoryPolicy
from rmc_rl.agents.recording import Recording
from rmc_rl.studies.pictures import (
    Bars,
    Column,
    Film,
    HeatMap,
    Lines,
    Matrix,
    Panel,
    Pictures,
    Strip,
    TimeAxis,
    contact_sheet,
)

AVERAGED = ("head", "unit")  # axes that pictures average over
FEW = 24  # numbers that get a row or a bar of their own, with a label
# percentile of the sizes of a state that gets the darkest colour: a single large number would hide the others
BRIGHTEST = 99.5
MEMORY_SHARE = 2.5  # of the height, relative to other panels over time
STILLS = 8  # steps on a contact sheet
MANY_MATRICES = 4  # so many stand in pairs
SEEN_HEIGHT = 170  # pixels at most: of an image that the agent saw
SHARES = (1.05, 1.45, 0.85)  # widths of the columns: pictures and actions, over time, attention


class Panels:
    """
    The panels of an episode.

    :param recording: the episode
    :param policy: the policy that played it
    :param name: of environment and core, for the heading
    :param why: a step and what :func:`rmc_rl.agents.recording.influence` returned for it
    """

    def __init__(self, recording: Recording, policy: MlpMemoryPolicy, name: str, why: tuple[int, np.ndarray] | None = None):
        self.recording, self.policy, self.name = recording, policy, name
        self.axes = policy.core.axes()
        self.pictures: list[Panel] = []  # of the present step
        self.attention: list[Matrix] = []  # of the present step
        self.actions: list[Panel] = []
        self.over_time: list[Panel] = []
        if recording.frames:
            self.pictures.append(Pictures("the world", recording.frames))
        self._add_observations()
        self._add_core()
        self._add_actions()
        self.lines = Lines(
            "thin: value; thick: reward so far, with this action's", recording.rewards.cumsum(), recording.values
        )
        if why is not None:
            step, influences = why
            title = f"why action {step}: gradient to each observation"
            self.over_time.append(Strip(title, np.pad(influences, (0, recording.length - 1 - step)), step))
        self.over_time.append(TimeAxis(recording.length))

    def film(self) -> Film:
        """The film: a frame before each action, and one after the last."""
        pictures, over_time, attention = SHARES
        # two pictures leave no room for curves below them
        beside = [self.lines] if len(self.pictures) > 1 else []
        left = [*self.pictures, *self.actions, *([] if beside else [self.lines])]
        matrices: list[list[Panel]] = [[panel] for panel in self.attention]
        if len(self.attention) >= MANY_MATRICES:
            short = [replace(panel, title=panel.title.split(" (")[0]) for panel in self.attention]
            matrices = [[*short[index : index + 2]] for index in range(0, len(short), 2)]
        columns = [
            Column(pictures, [[panel] for panel in left]),
            Column(over_time, [[panel] for panel in (*beside, *self.over_time)]),
            Column(attention, matrices),
        ]
        return Film(columns, self.recording.length + 1, self.heading)

    def sheet(self, why: int | None = None) -> np.ndarray:
        """
        A still: some steps side by side, and everything over time.

        :param why: a step that must be among them
        :return: the picture, ``(height, width, 3)`` uint8
        """
        last = self.recording.length - 1
        steps = sorted(
            {*np.linspace(0, last, min(STILLS, last + 1)).round().astype(int).tolist(), *([] if why is None else [why])}
        )
        stills = [*self.pictures, *self.attention, *self.actions]
        return contact_sheet(
            stills, [self.lines, *self.over_time], steps, f"{self.name}: {last + 1} steps, reward {self._reward(last + 1)}"
        )

    def heading(self, step: int) -> str:
        """
        The text above a frame.

        :param step: from 0; the number of steps after the last action
        """
        count = self.recording.length
        if step >= count:
            how = "the end" if self.recording.ended else "cut"
            return f"{self.name}   {how} after {count} steps   reward {self._reward(count)}"
        action = np.array2string(self.recording.actions[step].cpu().numpy(), precision=2, separator=", ")
        brings = f"action {action}, reward {self.recording.rewards[step]:.3g}"
        return f"{self.name}   step {step} of {count}   {brings}   so far {self._reward(step + 1)}"

    def _reward(self, steps: int) -> str:
        return f"{self.recording.rewards[:steps].sum():.3g}"

    def _add_observations(self) -> None:
        seen, space = self.recording.observations, self.policy.observation_space
        parts = seen if isinstance(seen, dict) else {"": seen}
        of_parts = space.spaces if isinstance(space, spaces.Dict) else {"": space}
        for name, part in parts.items():
            title = f"what it saw: {name}" if name else "what it saw"
            numbers, of_part = part.cpu().numpy(), of_parts[name]
            if isinstance(of_part, spaces.Box) and is_image_space(of_part) and min(of_part.shape[:2]) > 0:
                self.pictures.append(Pictures(title, _images(numbers, of_part), SEEN_HEIGHT))
            else:
                self.over_time.append(_numbers_seen(title, numbers, of_part))

    def _add_core(self) -> None:
        looks = self.recording.looks
        memory = self.policy.core.memory_parts(looks["state"])
        for name, part in memory.items():
            values = _numpy(part)  # (T, parts, units)
            number = re.search(r"\d*$", name)
            active = looks.get("active" + (f"_{number[0]}" if number and number[0] else ""))
            marked = None if active is None or active.shape != part.shape[:2] else _numpy(active) > 0
            what = _plural(self._axis(name, 0, values.shape[1:]))
            scale = float(np.percentile(np.abs(values), BRIGHTEST)) or 1.0
            bar = "; black bar: active" if marked is not None else ""
            sign = "±" if (values < 0).any() else "0 to "
            title = f"{name.replace('_', ' ')}: {what} over time ({sign}{scale:.2g}{bar})"
            self.over_time.append(
                HeatMap(title, values, self._labels(name, 0, values.shape[1:]), scale, marked, share=MEMORY_SHARE)
            )
        if not memory:
            values = _numpy(looks["output"])[:, None]
            scale = float(np.percentile(np.abs(values), BRIGHTEST)) or 1.0
            self.over_time.append(HeatMap("no memory; the core's output over time", values, ["output"], scale))
        gates = {}
        for name, look in looks.items():
            kind = re.sub(r"_?\d+$", "", name)
            if kind.endswith("gate"):
                gates[name] = look
            elif kind.endswith("attention"):
                self._add_attention(name, look)
        self._add_gates(gates)

    def _add_gates(self, gates: dict[str, Tensor]) -> None:
        """All gates of the same number of parts in one panel, a band for each gate."""
        bands: dict[int, dict[str, np.ndarray]] = {}
        for name, gate in gates.items():
            values = _numpy(gate)
            last = self._axis(name, values.ndim - 2, values.shape[1:])
            if values.ndim > 2 and last in AVERAGED and values.shape[1] > 2:
                values = values.mean(-1)
            # otherwise every unit is a row: (T, layers, units) -> (T, layers * units)
            flat = values.reshape(len(values), -1)
            bands.setdefault(flat.shape[1], {})[name] = flat
        for count, found in bands.items():
            labels = [name.replace("_gate", "").replace("_", " ") for name in found]
            parts = self._axis(next(iter(found)), 0, gates[next(iter(found))].shape[1:])
            rows = f"a row per {parts}" if count <= FEW and isinstance(parts, str) else "all units"
            self.over_time.append(HeatMap(f"gates (0 to 1; {rows})", np.stack([*found.values()], 1), labels, 1.0, mean=True))

    def _add_attention(self, name: str, look: Tensor) -> None:
        values = _numpy(look)  # (T, ..., keys)
        shape = values.shape[1:]
        averaged = [axis for axis in range(len(shape) - 1) if self._axis(name, axis, shape) in AVERAGED]
        kept = [axis for axis in range(len(shape) - 1) if axis not in averaged and shape[axis] > 1]
        heads = int(np.prod([shape[axis] for axis in averaged]))
        values = values.mean(axis=tuple(axis + 1 for axis in averaged), keepdims=True)
        values = values.reshape(len(values), -1, shape[-1])
        rows = [""]
        for axis in kept:
            rows = [f"{row} {label}".strip() for row in rows for label in self._labels(name, axis, shape)]
        keys = self._labels(name, len(shape) - 1, shape)
        title = f"{name.replace('_', ' ')}" + (f" (mean of {heads} heads)" if heads > 1 else "")
        few_queries = values.shape[1] <= 4 and len(keys) > FEW  # GTrXL: layers to many past steps
        if values.shape[1] == 1 or few_queries:  # shows more over time than at one step
            bands = values if few_queries else values.transpose(0, 2, 1)
            band = f"; top: {keys[0]}, bottom: {keys[-1]}" if few_queries else ""
            labels, scale = (rows if few_queries else keys), float(np.percentile(values, BRIGHTEST))
            self.over_time.append(HeatMap(f"{title} over time (0 to {scale:.2g}{band})", bands, labels, scale))
        else:
            self.attention.append(Matrix(f"{title} now", values, rows, keys))

    def _add_actions(self) -> None:
        recording, space = self.recording, self.policy.action_space
        actions = recording.actions.cpu().numpy().reshape(recording.length, -1)
        if recording.probabilities is None:
            assert recording.means is not None
            labels = [f"{index}" for index in range(recording.means.shape[1])]
            self.actions.append(Bars("actions: mean", recording.means, labels, np.zeros(recording.means.shape, dtype=bool)))
            return
        valid = recording.masks.cpu().numpy() if recording.masks is not None else None
        if isinstance(space, spaces.MultiBinary):
            chosen, labels = actions > 0.5, [str(index) for index in range(actions.shape[1])]
            valid = None if valid is None else valid[:, 1::2]
        else:
            sizes = [int(size) for size in np.atleast_1d(space.nvec if isinstance(space, spaces.MultiDiscrete) else space.n)]  # type: ignore[attr-defined]
            chosen = np.concatenate(
                [np.eye(size, dtype=bool)[actions[:, part].astype(int)] for part, size in enumerate(sizes)], 1
            )
            several = len(sizes) > 1
            labels = [f"{part}:{index}" if several else str(index) for part, size in enumerate(sizes) for index in range(size)]
        title = "action probabilities"
        if len(labels) > FEW:
            self.over_time.append(HeatMap(f"{title} over time (0 to 1)", recording.probabilities[..., None], labels))
        else:
            self.actions.append(Bars(title, recording.probabilities, labels, chosen, valid))

    def _axis(self, name: str, axis: int, shape: Any) -> Axis:
        """What an axis of a tensor stands for; without the core's word a guess."""
        axes = self.axes.get(name) or self.axes.get(re.sub(r"_?\d+$", "", name))
        if axes is not None and len(axes) == len(shape):
            return axes[axis]
        from_last = len(shape) - 1 - axis
        if name.rstrip("0123456789_").endswith("attention"):
            return ("key", "query")[from_last] if from_last < 2 else "head"
        return "unit" if from_last == 0 and len(shape) > 1 else "part"

    def _labels(self, name: str, axis: int, shape: Any) -> list[str]:
        """A label for each entry of an axis."""
        found, count = self._axis(name, axis, shape), shape[axis]
        if isinstance(found, str):
            return [f"{found} {index + 1}" for index in range(count)] if count > 1 else [found]
        return list(found) if len(found) == count else [str(index + 1) for index in range(count)]


def _numpy(tensor: Tensor) -> np.ndarray:
    array: np.ndarray = tensor.detach().to("cpu", torch.float32).numpy()
    return array


def _plural(axis: Axis) -> str:
    return f"{axis}s" if isinstance(axis, str) else "units"


def _images(observations: np.ndarray, space: spaces.Box) -> list[np.ndarray]:
    """Images as pictures ``(h, w, 3)``; channels that are not three stand side by side in grey."""
    if is_image_space_channels_first(space):
        observations = observations.transpose(0, 2, 3, 1)  # (T, C, h, w) -> (T, h, w, C)
    channels = observations.shape[-1]
    if channels == 3:
        return list(observations)
    grey = observations.transpose(0, 1, 3, 2).reshape(len(observations), observations.shape[1], -1)  # (T, h, C w)
    return [np.repeat(image[..., None], 3, axis=2) for image in grey]


def _numbers_seen(title: str, observations: np.ndarray, space: spaces.Space[Any]) -> HeatMap:
    """Observations without a picture, over time."""
    steps = len(observations)
    if isinstance(space, spaces.Discrete):
        one_hot = np.eye(int(space.n))[observations.astype(int).reshape(steps)]
        return HeatMap(f"{title} over time", one_hot[..., None], [str(value) for value in range(int(space.n))])
    values = observations.reshape(steps, -1).astype(float)
    largest = np.abs(values).max(axis=0)
    values = values / np.where(largest > 0, largest, 1)
    few = values.shape[1] <= FEW
    shaped = values[..., None] if few else values[:, None]
    labels = [str(index) for index in range(values.shape[1])] if few else [f"{values.shape[1]} numbers"]
    return HeatMap(f"{title} over time (each row divided by its largest)", shaped, labels)
