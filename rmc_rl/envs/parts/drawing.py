"""
Pictures of worlds for people: colours with the same meaning in all worlds, and drawings of cells and discs.

Frames are ``(height, width, 3)`` uint8, as for Gymnasium's ``rgb_array``.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# RGB. The hues are those of Okabe and Ito, "Color Universal Design", 2008, which colour-blind people can distinguish
PAPER, GRID, WALL, DARK = (250, 250, 250), (225, 225, 225), (90, 90, 100), (35, 35, 45)
SEEN, RIGHT, WRONG, NOW = (0, 114, 178), (0, 158, 115), (213, 94, 0), (255, 236, 170)
AGENT, GOAL, FOOD = (204, 121, 167), (0, 158, 115), (230, 159, 0)


def enlarge(cells: np.ndarray, size: int, lines: tuple[int, int, int] | None = GRID) -> np.ndarray:
    """
    A picture of coloured cells.

    :param cells: ``(rows, columns, 3)`` uint8, the colour of each cell
    :param size: pixels along a cell
    :param lines: colour of the lines between cells; None: no lines
    :return: ``(rows * size, columns * size, 3)`` uint8
    """
    # (rows, columns, 3) -> (rows * size, columns * size, 3)
    frame = cells.repeat(size, axis=0).repeat(size, axis=1)
    if lines is not None:
        frame[::size] = frame[:, ::size] = lines
    return frame


def disc(frame: np.ndarray, x: float, y: float, radius: float, colour: tuple[int, int, int]) -> None:
    """
    Draw a filled disc into a frame.

    :param frame: ``(height, width, 3)`` uint8, changed in place
    :param x: pixels from the left to the centre
    :param y: pixels from the top to the centre
    :param radius: pixels
    :param colour: RGB
    """
    rows, columns = np.ogrid[: frame.shape[0], : frame.shape[1]]
    frame[(columns + 0.5 - x) ** 2 + (rows + 0.5 - y) ** 2 <= radius**2] = colour


def line(
    frame: np.ndarray, x: float, y: float, to_x: float, to_y: float, colour: tuple[int, int, int], width: int = 8
) -> None:
    """
    Draw a line into a frame.

    :param frame: ``(height, width, 3)`` uint8, changed in place
    :param x: pixels from the left to its start
    :param y: pixels from the top to its start
    :param to_x: pixels from the left to its end
    :param to_y: pixels from the top to its end
    :param colour: RGB
    :param width: pixels
    """
    image = Image.fromarray(frame)
    ImageDraw.Draw(image).line((x, y, to_x, to_y), fill=colour, width=width)
    frame[:] = np.asarray(image)


def outline(frame: np.ndarray, cell: Sequence[int], cells: int, colour: tuple[int, int, int]) -> None:
    """
    Draw the edge of a cell into a square frame.

    :param frame: ``(side, side, 3)`` uint8, changed in place
    :param cell: row and column
    :param cells: number of cells along a side of the frame
    :param colour: RGB
    """
    side = len(frame)
    (top, bottom), (left, right) = (
        (place * side // cells, max((place + 1) * side // cells, place * side // cells + 1)) for place in cell
    )
    square, edge = frame[top:bottom, left:right], min(3, max(1, side // cells // 8))
    inner = square[edge:-edge, edge:-edge].copy()
    square[:] = colour
    square[edge:-edge, edge:-edge] = inner


def write(frame: np.ndarray, text: str, x: float, y: float, colour: tuple[int, int, int], size: int = 14) -> None:
    """
    Write a line of text into a frame.

    :param frame: ``(height, width, 3)`` uint8, changed in place
    :param text: the text
    :param x: pixels from the left to the middle of the text
    :param y: pixels from the top to the middle of the text
    :param colour: RGB
    :param size: height of the letters in pixels
    """
    image = Image.fromarray(frame)
    ImageDraw.Draw(image).text((x, y), text, fill=colour, font=ImageFont.load_default(size), anchor="mm")
    frame[:] = np.asarray(image)
