"""
Pictures from arrays, step by step: heat maps over time, matrices, bars, lines, and the film frames that hold them.

A :class:`Panel` draws one thing. What all steps share is drawn once; a step then copies and recolours arrays, so that a film
of hundreds of frames takes seconds. Colours: Okabe and Ito, "Color Universal Design", 2008, which colour-blind people can
distinguish.

Shapes: ``T`` steps, ``P`` parts of ``U`` units each, ``h`` and ``w`` height and width in pixels. A picture is ``(h, w, 3)``
uint8.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
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
LARGEST_ROW = 26  # pixels: of a bar
MOST_SCALE = 8  # times that a small picture is enlarged
SIZE = (1024, 576)  # width and height of a film
SHEET_WIDTHS, LARGEST_STILL = (900, 1600), 280  # pixels: of a contact sheet, of one of its pictures
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


class Panel(ABC):
    """
    A part of a picture that changes from step to step, under a title.

    ``share`` is its part of the height that panels without a :meth:`wish` divide among themselves, relative to the others.
    """

    title: str
    share: float = 1.0

    def margin(self) -> int:
        """The pixels that the labels on the left need."""
        return 0

    def wish(self, width: int) -> int | None:
        """The height that fits a width, in pixels; None: what the others leave."""
        return None

    @abstractmethod
    def draw(self, box: Box) -> Drawn:
        """
        Draw what all steps share.

        :param box: the room
        :return: function from a step to the picture, ``(box.height, box.width, 3)``
        """


@dataclass(frozen=True)
class Pictures(Panel):
    """
    A picture for each step, as large as there is room; from twice its size on, it is enlarged by whole numbers.

    :param title: above it
    :param images: ``(h, w, 3)`` or grey ``(h, w)``; the last one stays if there are more steps
    :param most: pixels: the largest height that it wishes for
    """

    title: str
    images: Sequence[np.ndarray]
    most: int = FITTED[1]

    def wish(self, width: int) -> int:
        height, wide = self.images[0].shape[:2]
        return max(1, int(height * _scale(min(width / wide, self.most / height))))

    def draw(self, box: Box) -> Drawn:
        def at(step: int) -> np.ndarray:
            frame, image = _blank(box), self.images[min(step, len(self.images) - 1)]
            if image.ndim == 2:
                image = np.repeat(image[..., None], 3, axis=2)
            height, width = image.shape[:2]
            image = _resized(image, _scale(min(box.width / width, box.height / height)))
            frame[: image.shape[0], : image.shape[1]] = image
            return frame

        return at


@dataclass(frozen=True)
class HeatMap(Panel):
    """
    Numbers over time, one column per step; later steps are not shown yet.

    :param title: above it
    :param values: ``(T, P, U)``: a band for each part, in it a row for each unit
    :param labels: of the parts
    :param scale: the value with the darkest colour; values below 0 have the other colour
    :param marked: ``(T, P)`` bool: parts with a black bar above them at a step; None: no bars
    :param mean: where a pixel stands for several values it shows their mean, otherwise the one that is largest in size
    :param share: see :class:`Panel`
    """

    title: str
    values: np.ndarray
    labels: Sequence[str]
    scale: float = 1.0
    marked: np.ndarray | None = None
    mean: bool = False
    share: float = 1.0

    def margin(self) -> int:
        return max(map(text_width, self.labels), default=0) + 5

    def draw(self, box: Box) -> Drawn:
        steps, parts, _ = self.values.shape
        width, frame = box.width - box.margin, _blank(box)
        colours = DIVERGING if (self.values < 0).any() else SEQUENTIAL
        full = np.full((box.height, width, 3), PAPER, dtype=np.uint8)
        edges = np.linspace(0, box.height, parts + 1).round().astype(int)
        mark = MARK if self.marked is not None else 0
        pool = _pool_mean if self.mean else _pool_largest
        columns = pool(self.values, width, 0)  # (w, P, U)
        for part, (top, bottom) in enumerate(pairwise(edges.tolist())):
            line = 0 if parts == 1 else 1 + (bottom - top > LARGEST_ROW)  # pixels between bands
            end = max(top + mark + 1, bottom - line)
            band = pool(columns[:, part], end - top - mark, 1)  # (w, h)
            full[top + mark : end] = coloured(band.T, self.scale, colours)
            if self.marked is not None:
                marks = _pool_largest(self.marked[:, part].astype(float), width, 0) > 0
                full[top : top + mark, marks] = INK
        _write_labels(frame, self.labels, (edges[:-1] + edges[1:]) / 2, box.margin - 5)
        return _revealed(frame, full, box, steps)


@dataclass(frozen=True)
class Matrix(Panel):
    """
    Weights from rows to columns at the present step.

    :param title: above it
    :param values: ``(T, rows, columns)``, 0 to 1
    :param rows: labels
    :param columns: labels
    """

    title: str
    values: np.ndarray
    rows: Sequence[str]
    columns: Sequence[str]

    def margin(self) -> int:
        return max(map(text_width, self.rows), default=0) + 5

    def draw(self, box: Box) -> Drawn:
        _, rows, columns = self.values.shape
        row_labels, column_labels = self.rows, self.columns
        if self.margin() > box.width // 4:  # little room: without the word before each number
            row_labels, column_labels = _shortened(row_labels), _shortened(column_labels)
        frame, margin = _blank(box), max(map(text_width, row_labels), default=0) + 5
        turned = max(map(text_width, column_labels)) + 4 > (box.width - margin) // columns
        top = (max(map(text_width, column_labels)) if turned else FONT + 3) + 4
        width = max(1, min((box.width - margin) // columns, 60))
        height = max(1, min((box.height - top) // rows, max(width, 24)))
        centres = (np.arange(rows) + 0.5) * height + top
        _write_labels(frame, row_labels, centres, margin - 5)
        image = Image.fromarray(frame)
        every = -(-(FONT + 1) // width)  # labels that fit side by side
        for column, label in enumerate(column_labels):
            if column % every and column != columns - 1:
                continue
            centre = margin + (column + 0.5) * width
            if turned:
                if column == columns - 1 and column % every:
                    continue
                _write_turned(image, label, round(centre), top - 4)
            else:
                ImageDraw.Draw(image).text((centre, top - 6), label, fill=INK, font=font(), anchor="ms")
        frame = np.array(image)

        def at(step: int) -> np.ndarray:
            cells = coloured(self.values[min(step, len(self.values) - 1)], 1.0, SEQUENTIAL)
            cells = cells.repeat(height, axis=0).repeat(width, axis=1)
            if min(width, height) > 4:
                cells[::height] = cells[:, ::width] = FUTURE
            picture: np.ndarray = frame.copy()
            picture[top : top + len(cells), margin : margin + cells.shape[1]] = cells[: box.height - top]
            return picture

        return at


@dataclass(frozen=True)
class Bars(Panel):
    """
    A bar for each of a few numbers at the present step.

    :param title: above it
    :param values: ``(T, n)``
    :param labels: of the bars
    :param chosen: ``(T, n)`` bool: bars of another colour, with the word "taken"
    :param valid: ``(T, n)`` bool: the labels of the others are faint; None: all are valid
    """

    title: str
    values: np.ndarray
    labels: Sequence[str]
    chosen: np.ndarray
    valid: np.ndarray | None = None

    def margin(self) -> int:
        return max(map(text_width, self.labels), default=0) + 5

    def wish(self, width: int) -> int:
        return min(LARGEST_ROW * len(self.labels), 200)

    def draw(self, box: Box) -> Drawn:
        count, margin, number = len(self.labels), self.margin(), text_width("-0.00 taken") + 6
        height = min(LARGEST_ROW, max(1, box.height // count))
        low, high = min(0.0, float(self.values.min())), max(1.0, float(self.values.max()))
        room = box.width - margin - number
        zero = margin + round(room * -low / (high - low))
        size = min(FONT, height)

        def at(step: int) -> np.ndarray:
            step = min(step, len(self.values) - 1)
            image = Image.fromarray(_blank(box))
            pen = ImageDraw.Draw(image)
            for index, (value, label) in enumerate(zip(self.values[step], self.labels, strict=True)):
                top, bottom = index * height + 1, (index + 1) * height - 2
                valid = self.valid is None or bool(self.valid[step, index])
                end = zero + round(room * float(value) / (high - low))
                colour = VERMILLION if self.chosen[step, index] else BLUE
                pen.rectangle((min(zero, end), top, max(zero, end), max(top, bottom)), fill=colour)
                if height > size - 4:
                    middle, ink = (top + bottom) / 2, INK if valid else FAINT
                    pen.text((margin - 5, middle), label, fill=ink, font=font(size), anchor="rm")
                    taken = " taken" if self.chosen[step, index] else ""
                    shown = f"{value:.2f}{taken}" if valid else "masked"
                    pen.text((max(zero, end) + 4, middle), shown, fill=ink, font=font(size), anchor="lm")
            pen.line((zero, 0, zero, count * height), fill=INK)
            return np.array(image)

        return at


@dataclass(frozen=True)
class Lines(Panel):
    """
    Curves over time, up to the present step.

    :param title: above them; it names them
    :param thick: ``(T,)``, drawn thick and orange
    :param thin: ``(T,)``, drawn thin and blue
    """

    title: str
    thick: np.ndarray
    thin: np.ndarray

    def _ends(self) -> tuple[float, float]:
        numbers = np.concatenate([np.zeros(1), self.thick, self.thin])
        low, high = float(numbers.min()), float(numbers.max())
        return low, high if high > low else low + 1

    def margin(self) -> int:
        return max(text_width(f"{end:.2g}") for end in self._ends()) + 5

    def draw(self, box: Box) -> Drawn:
        steps, width = len(self.thick), box.width - box.margin
        (low, high), frame = self._ends(), _blank(box)

        def y(value: float) -> float:
            return 3 + (box.height - 7) * (1 - (value - low) / (high - low))

        image = Image.new("RGB", (width, box.height), PAPER)
        pen = ImageDraw.Draw(image)
        pen.line((0, y(0), width, y(0)), fill=FAINT)
        for curve, colour, size in ((self.thick, ORANGE, 5), (self.thin, BLUE, 2)):
            edges = np.arange(steps + 1) * width / steps
            heights = [y(float(value)) for value in curve]
            # a level for each step
            points = [
                (float(x), height)
                for x, height in zip(np.stack([edges[:-1], edges[1:]], 1).ravel(), np.repeat(heights, 2), strict=True)
            ]
            pen.line(points, fill=colour, width=size)
        ends = [f"{high:.2g}", f"{low:.2g}"] if box.height > 2 * FONT else [f"{high:.2g}"]
        _write_labels(frame, ends, np.array([FONT / 2, box.height - FONT / 2][: len(ends)]), box.margin - 5)
        return _revealed(frame, np.asarray(image), box, steps)


@dataclass(frozen=True)
class Strip(Panel):
    """
    One number for each step, as bars over time that are all shown from the first step on.

    :param title: above it
    :param values: ``(T,)``, at least 0; the highest bar has the full height
    :param pointed: a step with an arrow
    """

    title: str
    values: np.ndarray
    pointed: int

    def wish(self, width: int) -> int:
        return 44

    def draw(self, box: Box) -> Drawn:
        steps, width = len(self.values), box.width - box.margin
        columns = _pool_largest(self.values, width, 0) / (self.values.max() or 1.0)
        heights = np.round(columns * (box.height - 2)).astype(int)
        full = np.full((box.height, width, 3), FUTURE, dtype=np.uint8)
        full[np.arange(box.height)[:, None] >= box.height - heights] = GREEN
        x = round((self.pointed + 0.5) * width / steps)
        image = Image.fromarray(full)
        ImageDraw.Draw(image).polygon([(x - 6, 0), (x + 6, 0), (x, 9)], fill=INK)
        frame = _blank(box)
        frame[:, box.margin :] = np.asarray(image)

        def at(step: int) -> np.ndarray:
            picture: np.ndarray = frame.copy()
            if not box.is_still:
                _draw_cursor(picture[:, box.margin :], min(step, steps - 1), steps)
            return picture

        return at


@dataclass(frozen=True)
class TimeAxis(Panel):
    """
    The numbers of the steps under panels over time.

    :param steps: ``T``
    """

    steps: int
    title = ""

    def wish(self, width: int) -> int:
        return FONT + 4

    def draw(self, box: Box) -> Drawn:
        width = box.width - box.margin
        apart = text_width(str(self.steps)) + 14  # pixels between two numbers at least
        every = next(step for step in _round_numbers() if step * width / self.steps >= apart)
        image = Image.fromarray(_blank(box))
        pen = ImageDraw.Draw(image)
        for step in range(0, self.steps, every):
            x = box.margin + max((step + 0.5) * width / self.steps, text_width(str(step)) / 2 + 2)
            pen.text((x, FONT), str(step), fill=FAINT, font=font(), anchor="ms")
        pen.text((box.margin - 5, FONT), "step", fill=FAINT, font=font(), anchor="rs")
        frame = np.array(image)
        return lambda _step: frame


class Column(NamedTuple):
    """
    Panels below each other.

    :param share: of the width, relative to the other columns
    :param rows: from the top; each has one panel, or several side by side
    """

    share: float
    rows: Sequence[Sequence[Panel]]


class Film:
    """
    The frames of a film: columns of panels under a heading.

    :param columns: from left to right; those without panels are left out
    :param length: number of frames
    :param heading: from a step to the text above all panels
    :param size: width and height in pixels
    """

    def __init__(self, columns: Sequence[Column], length: int, heading: Callable[[int], str], size: tuple[int, int] = SIZE):
        self.length, self.heading = length, heading
        self.background = np.full((size[1], size[0], 3), PAPER, dtype=np.uint8)
        self.placed: list[tuple[int, int, Drawn]] = []  # left, top, and the panel
        columns = [column for column in columns if column.rows]
        left, room = GAP, size[0] - GAP * (len(columns) + 1)
        for column in columns:
            width = int(room * column.share / sum(each.share for each in columns))
            self._place(column.rows, left, TITLE + GAP, width, size[1] - TITLE - 2 * GAP)
            left += width + GAP

    def __len__(self) -> int:
        return self.length

    def frame(self, step: int) -> np.ndarray:
        """
        One frame.

        :param step: from 0
        """
        frame: np.ndarray = self.background.copy()
        for left, top, draw in self.placed:
            picture = draw(step)
            frame[top : top + len(picture), left : left + picture.shape[1]] = picture
        strip = Image.new("RGB", (frame.shape[1] - 2 * GAP, TITLE), PAPER)
        ImageDraw.Draw(strip).text((0, TITLE / 2), self.heading(step), fill=INK, font=font(FONT + 1), anchor="lm")
        frame[GAP // 2 : GAP // 2 + TITLE, GAP:-GAP] = np.asarray(strip)
        return frame

    def _place(self, rows: Sequence[Sequence[Panel]], left: int, top: int, width: int, height: int) -> None:
        """Give each panel of a column its room. All panels of a column have the same margin, so that steps are aligned."""
        margin = max((row[0].margin() for row in rows if len(row) == 1), default=0)
        titles = [TITLE if any(panel.title for panel in row) else 0 for row in rows]
        wishes = [
            max((wish for panel in row if (wish := panel.wish(_part(width, row))) is not None), default=None) for row in rows
        ]
        room = height - sum(titles) - GAP * (len(rows) - 1)
        open_rows = sum(wish is None for wish in wishes)
        shares = sum(row[0].share for row, wish in zip(rows, wishes, strict=True) if wish is None)
        wanted = sum(wish or 0 for wish in wishes)
        most = room - open_rows * min(120, room // (2 * len(rows)))  # so that the others keep a part
        if wanted > most:  # every wish is shortened alike
            wishes = [None if wish is None else int(wish * most / wanted) for wish in wishes]
            wanted = sum(wish or 0 for wish in wishes)
        for row, title, wish in zip(rows, titles, wishes, strict=True):
            tall = int((room - wanted) * row[0].share / shares) if wish is None else wish
            for index, panel in enumerate(row):
                x, wide = left + index * (_part(width, row) + GAP), _part(width, row)
                write(self.background, panel.title, x, top, wide)
                box = Box(wide, tall, margin if len(row) == 1 else panel.margin())
                self.placed.append((x, top + title, panel.draw(box)))
            top += title + tall + GAP


def contact_sheet(stills: Sequence[Panel], over_time: Sequence[Panel], steps: Sequence[int], heading: str) -> np.ndarray:
    """
    A still for papers: a few steps side by side, and everything over time below them.

    :param stills: drawn once for each step, a row for each panel
    :param over_time: drawn once, at the last step
    :param steps: which steps are shown
    :param heading: the text above
    :return: the picture, 900 to 1600 pixels wide
    """
    narrowest, widest = SHEET_WIDTHS
    sheet_width = min(max(len(steps) * (LARGEST_STILL + GAP) + GAP, narrowest), widest)
    width = min((sheet_width - GAP) // len(steps) - GAP, LARGEST_STILL)
    rows: list[tuple[int, list[tuple[int, str, np.ndarray]]]] = []  # height; left, title and picture of each panel
    for panel in stills:
        tall = min(panel.wish(width) or width, LARGEST_STILL)
        draw = panel.draw(Box(width, tall, panel.margin()))
        places = [GAP + index * (width + GAP) for index in range(len(steps))]
        row = [(x, f"step {step}" if panel is stills[0] else "", draw(step)) for x, step in zip(places, steps, strict=True)]
        rows += [(0, [(GAP, panel.title, np.zeros((0, 0, 3), np.uint8))]), (tall, row)]
    margin = max((panel.margin() for panel in over_time), default=0)
    for panel in over_time:
        tall = panel.wish(sheet_width) or int(LARGEST_STILL / 2 * min(panel.share, 2))
        picture = panel.draw(Box(sheet_width - 2 * GAP, tall, margin, is_still=True))(max(steps))
        rows.append((tall, [(GAP, panel.title, picture)]))
    heights = [height + (TITLE if any(title for _, title, _ in row) else 0) + GAP // 2 for height, row in rows]
    sheet = np.full((sum(heights) + TITLE + 2 * GAP, sheet_width, 3), PAPER, dtype=np.uint8)
    write(sheet, heading, GAP, GAP // 2, sheet_width - 2 * GAP, FONT + 1)
    top = TITLE + GAP
    for (height, row), total in zip(rows, heights, strict=True):
        titled = total - height - GAP // 2
        for x, title, picture in row:
            write(sheet, title, x, top, sheet_width - GAP - x)
            sheet[top + titled : top + titled + len(picture), x : x + picture.shape[1]] = picture
        top += total
    return sheet


def fitted(image: np.ndarray) -> np.ndarray:
    """
    A picture that is not larger than a film can show it, so that long films need little memory.

    :param image: the picture
    """
    return _resized(image, min(1.0, FITTED[0] / image.shape[1], FITTED[1] / image.shape[0]))


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


def _blank(box: Box) -> np.ndarray:
    return np.full((box.height, box.width, 3), PAPER, dtype=np.uint8)


def _part(width: int, row: Sequence[Panel]) -> int:
    """The width of a panel that has others beside it."""
    return (width - GAP * (len(row) - 1)) // len(row)


def _scale(fits: float) -> float:
    """How much a picture is enlarged or shrunk that would fit at a scale."""
    return float(min(MOST_SCALE, int(fits))) if fits >= 2 else fits


def _resized(image: np.ndarray, scale: float) -> np.ndarray:
    if scale == int(scale):
        return image.repeat(int(scale), axis=0).repeat(int(scale), axis=1)
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    kind = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(image).resize(size, kind))


def _spans(count: int, pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """First and last + 1 of the values that each pixel stands for."""
    first = np.arange(pixels) * count // pixels
    return first, np.maximum(first + 1, (np.arange(1, pixels + 1) * count) // pixels)


def _pool_largest(values: np.ndarray, pixels: int, axis: int) -> np.ndarray:
    """Values by pixel along an axis: of several the one that is largest in size, with its sign."""
    first, last = _spans(values.shape[axis], pixels)
    pooled = values.take(first, axis)
    for offset in range(1, int((last - first).max())):
        other = values.take(np.minimum(first + offset, last - 1), axis)
        pooled = np.where(np.abs(other) > np.abs(pooled), other, pooled)
    return pooled


def _pool_mean(values: np.ndarray, pixels: int, axis: int) -> np.ndarray:
    """Values by pixel along an axis: the mean of several."""
    first, last = _spans(values.shape[axis], pixels)
    sums = np.concatenate([np.zeros_like(values.take([0], axis)), values.cumsum(axis)], axis=axis)
    shape = [-1 if index == axis else 1 for index in range(values.ndim)]
    means: np.ndarray = (sums.take(last, axis) - sums.take(first, axis)) / (last - first).reshape(shape)
    return means


def _revealed(frame: np.ndarray, full: np.ndarray, box: Box, steps: int) -> Drawn:
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
            _draw_cursor(picture[:, margin:], step, steps)
        return picture

    return at


def _draw_cursor(picture: np.ndarray, step: int, steps: int) -> None:
    """Lines at both sides of the present step's column."""
    width = picture.shape[1]
    for x in {step * width // steps, max(step * width // steps, (step + 1) * width // steps - 1)}:
        picture[:, min(x, width - 1)] = INK


def _write_labels(frame: np.ndarray, labels: Sequence[str], centres: np.ndarray, right: int) -> None:
    """Labels at some heights, right-aligned; only those that do not overlap."""
    image, height = Image.fromarray(frame), len(frame)
    pen = ImageDraw.Draw(image)
    free = -float(FONT)
    for label, centre in zip(labels, centres.tolist(), strict=True):
        if centre - FONT / 2 >= free - 1 and -1 <= centre - FONT / 2 <= height - FONT + 1:
            pen.text((right, centre), label, fill=INK, font=font(), anchor="rm")
            free = centre + FONT / 2
    frame[:] = np.asarray(image)


def _shortened(labels: Sequence[str]) -> list[str]:
    """ "slot 3" as "3", if it is a number that follows."""
    return [last if (last := label.rpartition(" ")[2]).isdigit() else label for label in labels]


def _write_turned(image: Image.Image, label: str, centre: int, bottom: int) -> None:
    """A label that is read from below."""
    line = Image.new("RGB", (text_width(label), FONT + 4), PAPER)
    ImageDraw.Draw(line).text((0, FONT / 2 + 2), label, fill=INK, font=font(), anchor="lm")
    turned = line.transpose(Image.Transpose.ROTATE_90)
    image.paste(turned, (centre - turned.width // 2, bottom - turned.height))


def _round_numbers() -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    """1, 2, 5, 10, 20, 50 ..."""
    return np.outer(10 ** np.arange(12), [1, 2, 5]).ravel()
