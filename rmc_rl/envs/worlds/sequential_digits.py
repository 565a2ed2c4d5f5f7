"""
Sequential digits as a reinforcement-learning problem: observe the pixels of a handwritten digit in sequence, then name it.

Task: Le, Jaitly & Hinton, "A simple way to initialize recurrent networks of rectified linear units", 2015,
https://arxiv.org/abs/1504.00941 (28x28 MNIST); trained at one resolution and tested at others: Goyal et al., "Recurrent
Independent Mechanisms", 2019, https://arxiv.org/abs/1909.10893, section 4.1 (14x14; tested at 16x16, 19x19 and 24x24).

Shapes: ``B`` worlds, ``I`` images, ``C`` chunks of ``K`` pixels.
"""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rmc_rl.envs.base import Answers, BatchedWorld, Returns
from rmc_rl.envs.parts import drawing
from rmc_rl.envs.parts.digits import INTERPOLATIONS, SPLITS, load_digits, resize
from rmc_rl.envs.parts.keywords import require_memory, whole
from rmc_rl.errors import require, require_choice, require_truth

CLASSES = 10
_SIDE, _LINE = 192, 20  # pixels: of the digit at least, of the line of answers under it


class SequentialDigitsWorld(BatchedWorld):
    """
    Description
    -----------
    The agent observes a handwritten digit, ``pixels_per_step`` pixels per step, row by row from the top left. Then follows one
    step without pixels, at which it must name the digit. The digits are 1,797 real scans of 8x8 pixels that are part of this
    package (``data=None``: nothing to install or to download), or MNIST from a folder. Images are resized to ``size``: train
    at one size, test at others. Of the scans, the first 80 % are for training and the others for testing (``split``); MNIST
    has its own split.

    Action Space
    ------------
    ``Discrete(10)``: the digit. Actions before the last step have no effect.

    Observation Encoding
    --------------------
    ``Box(0, 1, (pixels_per_step + 1,))``: the pixels, 0 (paper) to 1 (ink), and a 1 while pixels are shown. At the last step
    all numbers are 0, so that an empty pixel differs from no pixel (a core with a null input must tell them apart).

    Rewards
    -------
    1 for the right digit at the last step, otherwise 0.

    Termination
    -----------
    The episode terminates after ``size ** 2 / pixels_per_step + 1`` steps, with the answer. It is never truncated.

    Memory demand
    -------------
    The first pixels are needed until the last step, and the shape of all of them together counts. Return of perfect play: 1,
    for digits that can be recognised (a nearest neighbour among the training images names 0.96 of the test images at 8x8). Of
    random play: 0.1. Of a memoryless player: the share of the most frequent class, 0.10, because the last step always looks
    the same.

    Answers
    -------
    The right digit at the last step.

    Registered Configurations
    -------------------------
    ``rmc_rl/SequentialDigits-v0``: 8x8, pixel by pixel. Easier: ``pixels_per_step=8``, a row per step. The RIMs paper: MNIST
    in ``data``, ``size=14, binary=True``, then ``split="test"`` with ``size=16``, 19 and 24.

    :param num_envs: ``B``, number of copies
    :param size: pixels along a side; None: as many as the images have, 8 or MNIST's 28
    :param pixels_per_step: ``K``; must divide ``size ** 2``
    :param split: "train" or "test", which images are used
    :param interpolation: "area" or "nearest", how images are resized
    :param binary: whether pixels are only 0 and 1: ink from middle grey on, after resizing
    :param data: a folder with MNIST's files (train-images-idx3-ubyte and so on, unpacked or as .gz); None: the scans
    :param device: where the tensors are
    :param render_mode: None, or "rgb_array": the observed pixels (the present ones on yellow), and below them the ten classes
        (the answer green if right, otherwise red)
    :raises UsageError: for invalid sizes, an unknown split or interpolation, and files that are missing or broken
    """

    family = "recall"
    metadata: dict[str, Any] = BatchedWorld.metadata | {"render_modes": ["rgb_array"]}

    image: Tensor  # (B,), an index into the set
    time: Tensor  # (B,), steps since the episode began
    answer: Tensor  # (B,), kept only for pictures; -1: not answered yet

    def __init__(
        self,
        num_envs: int = 1,
        size: int | None = None,
        pixels_per_step: int = 1,
        split: str = "train",
        interpolation: str = "area",
        binary: bool = False,
        data: str | None = None,
        device: torch.device | str = "cpu",
        render_mode: str | None = None,
    ):
        size = None if size is None else whole("size", size)
        pixels_per_step = whole("pixels_per_step", pixels_per_step)
        require_choice("split", split, SPLITS)
        require_choice("interpolation", interpolation, INTERPOLATIONS)
        require_truth("binary", binary)
        images, classes = load_digits(split, data)
        self.size = images.shape[-1] if size is None else size
        pixels = self.size**2
        require_memory(4 * len(images) * pixels, size=size)
        require(pixels % pixels_per_step == 0, f"pixels_per_step must divide the {pixels} pixels", pixels_per_step)
        seen = spaces.Box(0, 1, (pixels_per_step + 1,), np.float32)
        super().__init__(num_envs, seen, spaces.Discrete(CLASSES), device, render_mode)
        images = resize(images, self.size, interpolation)
        if binary:
            images = (images >= 0.5).float()
        self.n_chunks = pixels // pixels_per_step
        # (I, size, size) -> (I * C, K)
        self._chunks = images.reshape(-1, pixels_per_step).to(self.device)
        self.classes = classes.to(self.device)  # (I,)

    def _draw(self, count: int) -> dict[str, Tensor]:
        image = torch.randint(len(self.classes), (count,), generator=self.generator, device=self.device)
        return {"image": image, "time": torch.zeros_like(image), "answer": torch.full_like(image, -1)}

    def _answers(self) -> Answers:
        return Answers(self.classes[self.image], self.time == self.n_chunks)

    def returns(self) -> Returns:
        most_frequent = int(self.classes.bincount().max())
        return Returns(random=1 / CLASSES, memoryless=most_frequent / len(self.classes), perfect=1.0)

    def memory_demand(self) -> int:
        return self.n_chunks

    def _advance(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        terminated = self.time == self.n_chunks
        if self.render_mode is not None:
            self.answer = torch.where(terminated, actions, self.answer)
        right = terminated & (actions == self.classes[self.image])
        self.time = self.time + 1
        return right.float(), terminated, torch.zeros_like(terminated)

    def _observe(self) -> Tensor:
        shows = (self.time < self.n_chunks).float().unsqueeze(-1)
        chunk = self._chunks[self.image * self.n_chunks + self.time.clamp(max=self.n_chunks - 1)]
        return torch.cat([chunk * shows, shows], -1)

    def _picture(self, index: int) -> np.ndarray:
        image, time, answer = int(self.image[index]), int(self.time[index]), int(self.answer[index])
        # (C, K) -> (size * size, 1)
        chunks = self._chunks[image * self.n_chunks : (image + 1) * self.n_chunks]
        ink = chunks.reshape(-1, 1).cpu().numpy()
        step = np.arange(ink.size).reshape(-1, 1) // chunks.shape[1]
        paper = np.where(step == time, drawing.NOW, drawing.PAPER)
        colours = np.where(step <= time, paper + ink * (np.array(drawing.SEEN) - paper), drawing.GRID)
        cell = -(-_SIDE // self.size)
        side = cell * self.size
        frame = np.full((side + _LINE, side, 3), drawing.PAPER, dtype=np.uint8)
        frame[:side] = drawing.enlarge(colours.reshape(self.size, self.size, 3).astype(np.uint8), cell, lines=None)
        right = answer == int(self.classes[image])
        for digit in range(CLASSES):
            colour = drawing.DARK if digit != answer else drawing.RIGHT if right else drawing.WRONG
            x, y = (digit + 0.5) * side / CLASSES, side + _LINE / 2
            if digit == answer:
                drawing.disc(frame, x, y, _LINE / 2, colour)
            drawing.write(frame, str(digit), x, y, drawing.PAPER if digit == answer else colour)
        return frame
