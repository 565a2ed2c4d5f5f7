"""
Pictures from arrays, step by step: heat maps over time, matrices, bars, lines, and the film frames that hold them.

A :class:`Panel` draws one thing. What all steps share is drawn once; a step then copies and recolours arrays, so that a film
of hundreds of frames takes seconds.

Shapes: ``T`` steps, ``P`` parts of ``U`` units each, ``h`` and ``w`` height and width in pixels. A picture is ``(h, w, 3)``
uint8.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from rmc_rl.studies.canvas import (
    BLUE,
    DIVERGING,
    FAINT,
    FITTED,
    FONT,
    FUTURE,
    GAP,
    GREEN,
    INK,
    MARK,
    ORANGE,
    PAPER,
    SEQUENTIAL,
    TITLE,
    VERMILLION,
    Box,
    Drawn,
    blank,
    coloured,
    draw_cursor,
    font,
    pool_largest,
    pool_mean,
    resized,
    revealed,
    round_numbers,
    scale_of,
    shortened,
    text_width,
    write,
    write_labels,
    write_turned,
)

LARGEST_ROW = 26  # pixels: of a bar
SIZE = (1024, 576)  # width and height of a film
SHEET_WIDTHS, LARGEST_STILL = (900, 1600), 280  # pixels: of a contact sheet, of one of its pictures


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
        return max(1, int(height * scale_of(min(width / wide, self.most / height))))

    def draw(self, box: Box) -> Drawn:
        def at(step: int) -> np.ndarray:
            frame, image = blank(box), self.images[min(step, len(self.images) - 1)]
            if image.ndim == 2:
                image = np.repeat(image[..., None], 3, axis=2)
            height, width = image.shape[:2]
            image = resized(image, scale_of(min(box.width / width, box.height / height)))
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
        width, frame = box.width - box.margin, blank(box)
        colours = DIVERGING if (self.values < 0).any() else SEQUENTIAL
        full = np.full((box.height, width, 3), PAPER, dtype=np.uint8)
        edges = np.linspace(0, box.height, parts + 1).round().astype(int)
        mark = MARK if self.marked is not None else 0
        pool = pool_mean if self.mean else pool_largest
        columns = pool(self.values, width, 0)  # (w, P, U)
        for part, (top, bottom) in enumerate(pairwise(edges.tolist())):
            line = 0 if parts == 1 else 1 + (bottom - top > LARGEST_ROW)  # pixels between bands
            end = max(top + mark + 1, bottom - line)
            band = pool(columns[:, part], end - top - mark, 1)  # (w, h)
            full[top + mark : end] = coloured(band.T, self.scale, colours)
            if self.marked is not None:
                marks = pool_largest(self.marked[:, part].astype(float), width, 0) > 0
                full[top : top + mark, marks] = INK
        write_labels(frame, self.labels, (edges[:-1] + edges[1:]) / 2, box.margin - 5)
        return revealed(frame, full, box, steps)


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
            row_labels, column_labels = shortened(row_labels), shortened(column_labels)
        frame, margin = blank(box), max(map(text_width, row_labels), default=0) + 5
        turned = max(map(text_width, column_labels)) + 4 > (box.width - margin) // columns
        top = (max(map(text_width, column_labels)) if turned else FONT + 3) + 4
        width = max(1, min((box.width - margin) // columns, 60))
        height = max(1, min((box.height - top) // rows, max(width, 24)))
        centres = (np.arange(rows) + 0.5) * height + top
        write_labels(frame, row_labels, centres, margin - 5)
        image = Image.fromarray(frame)
        every = -(-(FONT + 1) // width)  # labels that fit side by side
        for column, label in enumerate(column_labels):
            if column % every and column != columns - 1:
                continue
            centre = margin + (column + 0.5) * width
            if turned:
                if column == columns - 1 and column % every:
                    continue
                write_turned(image, label, round(centre), top - 4)
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
            image = Image.fromarray(blank(box))
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
        (low, high), frame = self._ends(), blank(box)

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
        write_labels(frame, ends, np.array([FONT / 2, box.height - FONT / 2][: len(ends)]), box.margin - 5)
        return revealed(frame, np.asarray(image), box, steps)


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
        columns = pool_largest(self.values, width, 0) / (self.values.max() or 1.0)
        heights = np.round(columns * (box.height - 2)).astype(int)
        full = np.full((box.height, width, 3), FUTURE, dtype=np.uint8)
        full[np.arange(box.height)[:, None] >= box.height - heights] = GREEN
        x = round((self.pointed + 0.5) * width / steps)
        image = Image.fromarray(full)
        ImageDraw.Draw(image).polygon([(x - 6, 0), (x + 6, 0), (x, 9)], fill=INK)
        frame = blank(box)
        frame[:, box.margin :] = np.asarray(image)

        def at(step: int) -> np.ndarray:
            picture: np.ndarray = frame.copy()
            if not box.is_still:
                draw_cursor(picture[:, box.margin :], min(step, steps - 1), steps)
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
        every = next(step for step in round_numbers() if step * width / self.steps >= apart)
        image = Image.fromarray(blank(box))
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


def _part(width: int, row: Sequence[Panel]) -> int:
    """The width of a panel that has others beside it."""
    return (width - GAP * (len(row) - 1)) // len(row)
