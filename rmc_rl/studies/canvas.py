"""
How pictures are drawn: colours, letters, sizes, and what the panels of :mod:`rmc_rl.studies.pictures` share.

Colours: Okabe and Ito, "Color Universal Design", 2008, which colour-blind people can distinguish. A picture is ``(h, w, 3)``
uint8; ``h`` and ``w`` are its height and width in pixels.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# RGB
PAPER, INK, FAINT, FUTURE = (255, 255, 255), (25, 25, 30), (130, 130, 135), (233, 233, 236)
BLUE, VERMILLION, GREEN, ORANGE = (0, 114, 178), (213, 94, 0), (0, 158, 115), (230, 159, 0)
DIVERGING = ((0, 60, 110), BLUE, (247, 247, 247), VERMILLION, (120, 45, 0))  # low ... 0 ... high
SEQUENTIAL = ((247, 247, 247), (120, 185, 225), BLUE, (0, 30, 65))  # 0 ... high
SHADES = 256
FONT, TITLE, GAP = 13, 20, 10  # pixels: letters, a line with a title, between panels
MARK = 3  # pixels: height of a mark on a band
MOST_SCALE = 8  # times that a small picture is enlarged
FITTED = (400, 440)  # largest width and height at which a picture is kept

Drawn = Callable[[int], np.ndarray]  # from a step to a picture


class Box(NamedTuple):
    """
    The room of a panel.

    :param width: pixels
    :param height: pixels
    :param margin: pixels of the width, on the left, for labels
    :param is_still: nothing marks the present step
    """

    width: int
    height: int
    margin: int
    is_still: bool = False


def fitted(image: np.ndarray) -> np.ndarray:
    """
    A picture that is not larger than a film can show it, so that long films need little memory.

    :param image: the picture
    """
    return resized(image, min(1.0, FITTED[0] / image.shape[1], FITTED[1] / image.shape[0]))


def coloured(values: np.ndarray, scale: float, colours: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """
    Colours of numbers.

    :param values: any shape
    :param scale: the number with the last colour
    :param colours: of equal distances: from 0 to ``scale``, or, if they are :data:`DIVERGING`, from ``-scale`` to ``scale``
    :return: the shape of the values and 3, uint8
    """
    shares = values / (scale or 1.0)
    if colours is DIVERGING:
        shares = (shares + 1) / 2
    shades: np.ndarray = _shades(tuple(colours))[(np.clip(np.nan_to_num(shares), 0, 1) * (SHADES - 1)).round().astype(int)]
    return shades


def write(frame: np.ndarray, text: str, left: int, top: int, width: int, size: int = FONT) -> None:
    """
    Write a line of text into a picture; what does not fit is cut.

    :param frame: changed in place
    :param text: the text
    :param left: pixels
    :param top: pixels
    :param width: pixels that it may take
    :param size: of the letters in pixels
    """
    if text:
        line = Image.new("RGB", (width, TITLE), PAPER)
        ImageDraw.Draw(line).text((0, TITLE / 2), text, fill=INK, font=font(size), anchor="lm")
        frame[top : top + TITLE, left : left + width] = np.asarray(line)


@lru_cache
def font(size: int = FONT) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """
    The font of all text.

    :param size: of the letters in pixels
    """
    return ImageFont.load_default(size)


@lru_cache(4096)
def text_width(text: str) -> int:
    """
    The width of a text in pixels.

    :param text: the text
    """
    return int(font().getlength(text)) + 1


@lru_cache
def _shades(colours: tuple[tuple[int, int, int], ...]) -> np.ndarray:
    places = np.linspace(0, 1, len(colours))
    channels = [np.interp(np.linspace(0, 1, SHADES), places, channel) for channel in zip(*colours, strict=True)]
    shades: np.ndarray = np.stack(channels, axis=-1).round().astype(np.uint8)
    return shades


def blank(box: Box) -> np.ndarray:
    return np.full((box.height, box.width, 3), PAPER, dtype=np.uint8)


def scale_of(fits: float) -> float:
    """How much a picture is enlarged or shrunk that would fit at a scale."""
    return float(min(MOST_SCALE, int(fits))) if fits >= 2 else fits


def resized(image: np.ndarray, scale: float) -> np.ndarray:
    if scale == int(scale):
        return image.repeat(int(scale), axis=0).repeat(int(scale), axis=1)
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    kind = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(image).resize(size, kind))


def _spans(count: int, pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """First and last + 1 of the values that each pixel stands for."""
    first = np.arange(pixels) * count // pixels
    return first, np.maximum(first + 1, (np.arange(1, pixels + 1) * count) // pixels)


def pool_largest(values: np.ndarray, pixels: int, axis: int) -> np.ndarray:
    """Values by pixel along an axis: of several the one that is largest in size, with its sign."""
    first, last = _spans(values.shape[axis], pixels)
    pooled = values.take(first, axis)
    for offset in range(1, int((last - first).max())):
        other = values.take(np.minimum(first + offset, last - 1), axis)
        pooled = np.where(np.abs(other) > np.abs(pooled), other, pooled)
    return pooled


def pool_mean(values: np.ndarray, pixels: int, axis: int) -> np.ndarray:
    """Values by pixel along an axis: the mean of several."""
    first, last = _spans(values.shape[axis], pixels)
    sums = np.concatenate([np.zeros_like(values.take([0], axis)), values.cumsum(axis)], axis=axis)
    shape = [-1 if index == axis else 1 for index in range(values.ndim)]
    means: np.ndarray = (sums.take(last, axis) - sums.take(first, axis)) / (last - first).reshape(shape)
    return means


def revealed(frame: np.ndarray, full: np.ndarray, box: Box, steps: int) -> Drawn:
    """
    A picture over time that is shown up to the present step.

    :param frame: what surrounds it, ``(h, margin + w, 3)``
    :param full: the picture of all steps, ``(h, w, 3)``
    :param box: its room
    :param steps: ``T``
    """
    first, margin = _spans(steps, full.shape[1])[0], box.margin

    def at(step: int) -> np.ndarray:
        step = min(step, steps - 1)
        picture: np.ndarray = frame.copy()
        shown = int(np.searchsorted(first, step, side="right"))
        picture[:, margin : margin + shown] = full[:, :shown]
        picture[:, margin + shown :] = FUTURE
        if not box.is_still:
            draw_cursor(picture[:, margin:], step, steps)
        return picture

    return at


def draw_cursor(picture: np.ndarray, step: int, steps: int) -> None:
    """Lines at both sides of the present step's column."""
    width = picture.shape[1]
    for x in {step * width // steps, max(step * width // steps, (step + 1) * width // steps - 1)}:
        picture[:, min(x, width - 1)] = INK


def write_labels(frame: np.ndarray, labels: Sequence[str], centres: np.ndarray, right: int) -> None:
    """Labels at some heights, right-aligned; only those that do not overlap."""
    image, height = Image.fromarray(frame), len(frame)
    pen = ImageDraw.Draw(image)
    free = -float(FONT)
    for label, centre in zip(labels, centres.tolist(), strict=True):
        if centre - FONT / 2 >= free - 1 and -1 <= centre - FONT / 2 <= height - FONT + 1:
            pen.text((right, centre), label, fill=INK, font=font(), anchor="rm")
            free = centre + FONT / 2
    frame[:] = np.asarray(image)


def shortened(labels: Sequence[str]) -> list[str]:
    """ "slot 3" as "3", if it is a number that follows."""
    return [last if (last := label.rpartition(" ")[2]).isdigit() else label for label in labels]


def write_turned(image: Image.Image, label: str, centre: int, bottom: int) -> None:
    """A label that is read from below."""
    line = Image.new("RGB", (text_width(label), FONT + 4), PAPER)
    ImageDraw.Draw(line).text((0, FONT / 2 + 2), label, fill=INK, font=font(), anchor="lm")
    turned = line.transpose(Image.Transpose.ROTATE_90)
    image.paste(turned, (centre - turned.width // 2, bottom - turned.height))


def round_numbers() -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    """1, 2, 5, 10, 20, 50 ..."""
    return np.outer(10 ** np.arange(12), [1, 2, 5]).ravel()
