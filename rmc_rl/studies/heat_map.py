"""
A picture of numbers over time, for TensorBoard.

Colours: blue below zero, white, vermilion above, from Okabe and Ito, "Color Universal Design", 2008, which colour-blind people
can tell apart.

Shapes: ``T`` steps, ``h`` and ``w`` height and width in pixels.
"""

from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw

LOW, ZERO, HIGH, INK = (np.array(colour) for colour in ((0, 114, 178), (255, 255, 255), (213, 94, 0), (30, 30, 30)))
WIDTH, LINE, GAP = 800, 14, 6  # pixels: of the picture, of a line of text, between two panels
LEAST, MOST = 24, 256  # pixels: height of a panel
ROW = 6  # pixels: height that a row should have


def heat_maps(values: Mapping[str, np.ndarray]) -> np.ndarray:
    """
    A heat map of each of several arrays, one above the other; steps go from left to right.

    :param values: ``(T, ...)`` by name; the other dimensions are flattened into rows
    :return: ``(h, w, 3)`` uint8
    """
    panels = [_panel(name, value.reshape(len(value), -1)) for name, value in values.items() if value.size]
    return np.concatenate(panels) if panels else np.full((LINE, WIDTH, 3), 255, dtype=np.uint8)


def _panel(name: str, value: np.ndarray) -> np.ndarray:
    """The panel of an array ``(T, rows)``, under a line with its name and its range."""
    value = np.nan_to_num(value.astype(float))
    strength = value / max(float(np.abs(value).max()), 1e-9)  # -1 ... 1
    end = np.where(strength[..., None] < 0, LOW, HIGH)
    colours = ZERO + (end - ZERO) * np.abs(strength)[..., None]  # (T, rows, 3)
    height = int(np.clip(ROW * value.shape[1], LEAST, MOST))
    cells = Image.fromarray(colours.transpose(1, 0, 2).round().astype(np.uint8))
    panel = Image.new("RGB", (WIDTH, LINE + height + GAP), (255, 255, 255))
    title = f"{name}: {value.shape[1]} rows, {value.shape[0]} steps, from {value.min():.3g} to {value.max():.3g}"
    ImageDraw.Draw(panel).text((2, 1), title, fill=tuple(int(part) for part in INK))
    panel.paste(cells.resize((WIDTH, height), Image.Resampling.NEAREST), (0, LINE))
    return np.asarray(panel)
