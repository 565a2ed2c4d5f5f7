"""
Which core predicts bouncing balls: python scripts/bouncing_balls.py [--rows rims lstm] [--updates 2000] [--seeds 0 1 2 3 4]

Supervised learning, without reinforcement: Goyal et al., "Recurrent Independent Mechanisms", 2019, section 4.2 and appendix D.
The core reads a frame and predicts the next one, pixel by pixel, by binary cross-entropy. It is trained on sequences of 50
frames with 4 balls. Then it sees 15 frames and goes on alone for 35: each prediction is its next input. It is tested with 4
balls, with 6 to 8, and with 3 behind a curtain. "ce" is the binary cross-entropy per pixel, in nats, and "F1" that of the
white pixels (probability above 0.5), both over the 35 frames, and F1 over the first 5 of them as well.

Unlike the paper: frames of 24x24 pixels instead of 64x64, linear layers around the core instead of convolutions, 8,192 stored
sequences instead of 50,000, fewer updates, one frame ahead of true frames in training, and cores of equal size.
"still" repeats the last frame; "memoryless" is a core that forgets everything. Neither is trained on motion.
"""

import argparse
import functools
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from arguments import at_least_one
from supervised import Result, Row, Task, main, sized_core, step
from torch import Tensor, nn

from rmc_rl.agents.cores import Core
from rmc_rl.envs.parts import balls
from rmc_rl.envs.worlds.bouncing_balls import CURTAIN

SEEN, ALONE, FIRST = 15, 35, 5  # frames: true ones, those predicted, and of these the first ones
SPEED = 0.06  # box lengths per frame
TESTED = {"4": (4, 4, False), "6-8": (6, 8, False), "curtain": (3, 3, True)}  # fewest and most balls, curtain
TRIALS = 256  # sequences of a test
ROWS = {
    row.label: row
    for row in (
        Row("rims", "rims", {}),
        Row("rmc", "rmc", {}),
        Row("lstm", "lstm", {}),
        Row("gru", "gru", {}),
        Row("memoryless", "memoryless", {}),
        Row("still", "", {}),
    )
}


def draw(count: int, frames: int, kind: tuple[int, int, bool], side: int, generator: torch.Generator) -> Tensor:
    """
    Sequences of binary frames.

    :param count: ``B``
    :param frames: ``T``
    :param kind: fewest balls, most balls, and whether a curtain hides the middle
    :param side: pixels along a side
    :return: ``(T, B, side * side)`` float, 1 where a ball is
    """
    least, most, curtain = kind
    drawn = balls.draw_balls(count, least, most, SPEED, generator)
    position, velocity, radius = drawn["position"], drawn["velocity"], drawn["radius"]
    centres = (torch.arange(side) + 0.5) / side
    shown = ((centres < CURTAIN[0]) | (centres > CURTAIN[1])).float() if curtain else torch.ones(side)
    found = []
    for _ in range(frames):
        covered = (balls.coverage(position, radius, side) >= 0.5).any(1).float()
        found.append((covered * shown).flatten(1))
        position, velocity = balls.move(position, velocity, radius)
    return torch.stack(found)


@functools.cache
def training_set(sequences: int, side: int) -> Tensor:
    """The sequences that all cores learn from, ``(SEEN + ALONE, sequences, side * side)`` bool."""
    generator = torch.Generator().manual_seed(20_000)
    parts = [draw(size, SEEN + ALONE, TESTED["4"], side, generator).bool() for size in _parts(sequences, 512)]
    return torch.cat(parts, 1)


def _parts(total: int, most: int) -> list[int]:
    """A number as a sum of parts, so that no tensor gets too large."""
    return [most] * (total // most) + ([total % most] if total % most else [])


class Predictor(nn.Module):
    """
    Encoder, core and decoder: frames ``(T, B, P)`` -> logits of the next frames ``(T, B, P)``.

    The decoder reads the features of the frame beside the core's output, so that the core need not copy what is seen now.
    """

    def __init__(self, row: Row, pixels: int, features: int, params: int):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(pixels, features), nn.ReLU())
        self.core: Core = sized_core(row, features, params)
        read = self.core.output_size + features
        self.decoder = nn.Sequential(nn.Linear(read, features), nn.ReLU(), nn.Linear(features, pixels))

    def forward(self, frames: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        features = self.encoder(frames)
        outputs, state = self.core(features, state)
        return self.decoder(torch.cat([outputs, features], -1)), state

    @torch.no_grad()
    def alone(self, frames: Tensor) -> Tensor:
        """Probabilities of the frames after ``SEEN``, each predicted from the prediction before, ``(ALONE, B, P)``."""
        logits, state = self(frames[:SEEN], self.core.initial_state(frames.shape[1]))
        found = [logits[-1:].sigmoid()]
        while len(found) < ALONE:
            logits, state = self(found[-1], state)
            found.append(logits.sigmoid())
        return torch.cat(found)


def measure(predicted: Tensor, true: Tensor) -> tuple[float, float]:
    """Binary cross-entropy per pixel in nats, and the F1 of the white pixels."""
    bounded = predicted.clamp(1e-4, 1 - 1e-4)  # a frame that is repeated is sure of itself
    white = predicted > 0.5
    hits = (white & (true > 0.5)).sum()
    f1 = 2 * hits / (white.sum() + (true > 0.5).sum())
    return F.binary_cross_entropy(bounded, true).item(), f1.item()


def run(row: Row, arguments: argparse.Namespace, seed: int) -> Result:
    """Train one core and test it."""
    side, generator = arguments.side, torch.Generator().manual_seed(seed)
    result: Result = {}
    predictor = None
    if row.core:
        predictor = Predictor(row, side**2, arguments.features, arguments.params)
        parameters = list(predictor.parameters())
        optimizer = torch.optim.Adam(parameters, lr=arguments.learning_rate)
        updates = 3 if arguments.quick else arguments.updates
        rate = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, updates)
        stored = training_set(64 if arguments.quick else arguments.sequences, side)
        for _ in range(updates):
            chosen = torch.randint(stored.shape[1], (arguments.batch,), generator=generator)
            frames = stored[:, chosen].float()
            logits, _ = predictor(frames[:-1], predictor.core.initial_state(arguments.batch))
            loss = F.binary_cross_entropy_with_logits(logits, frames[1:])
            step(optimizer, loss, parameters, clip=1.0)
            rate.step()
        result["parameters"] = sum(each.numel() for each in predictor.core.parameters())
        result["train"] = loss.item()
        predictor.eval()
    for name, kind in TESTED.items():
        frames = draw(TRIALS, SEEN + ALONE, kind, side, torch.Generator().manual_seed(10_000))
        predicted = predictor.alone(frames) if predictor else frames[SEEN - 1].expand(ALONE, -1, -1)
        result[f"ce {name}"], result[f"f1 {name}"] = measure(predicted, frames[SEEN:])
        result[f"first f1 {name}"] = measure(predicted[:FIRST], frames[SEEN : SEEN + FIRST])[1]
    return result


COLUMNS = {
    "parameters": "parameters of the core",
    "seconds": "seconds",
    "train": "last training loss",
    **{f"ce {name}": f"ce, {name}" for name in TESTED},
    **{f"f1 {name}": f"F1, {name}" for name in TESTED},
    **{f"first f1 {name}": f"F1 of {FIRST} frames, {name}" for name in TESTED},
}


def add_own_arguments(parser: argparse.ArgumentParser) -> None:
    """What this script alone asks for."""
    parser.add_argument("--sequences", type=at_least_one, default=8192, help="stored sequences to learn from")
    parser.add_argument("--side", type=at_least_one, default=24, help="pixels along a side of a frame")


DEFAULTS = dict(out=Path("runs/bouncing_balls.json"), updates=2000, batch=32, learning_rate=3e-3, params=100_000, features=200)
TASK = Task(ROWS, COLUMNS, run, DEFAULTS, add_own_arguments)

if __name__ == "__main__":
    sys.exit(main(TASK, __doc__))
