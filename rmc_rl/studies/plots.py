"""
Pictures of comparisons, drawn by Matplotlib without a window.

The colours are those of Okabe and Ito ("Color Universal Design", 2008, https://jfly.uni-koeln.de/color/), which people with
any kind of colour vision can tell apart. After six methods the lines change as well. The control is grey and dashed.
"""

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FixedLocator, NullLocator

from rmc_rl.studies.comparison import Group, Reference, World, in_numeric_order, methods, shown

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
GREY = "#888888"
LINES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P", "*")  # one more than colours: the next round differs in all three
PANELS = 3  # beside each other
TITLE_WIDTH = 9  # characters per inch of a panel
METHODS_WITH_SEEDS = 4  # in a panel with more methods, the lines of single seeds would hide the means
NEAR = 0.07  # of an axis: labels nearer than this would overlap
THEMES: dict[str, Any] = {
    "light": {},
    "dark": {
        **{f"{part}.facecolor": "#15181c" for part in ("figure", "axes", "savefig")},
        **{key: "#e4e6e8" for key in ("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor")},
        "legend.facecolor": "#15181c",
    },
}
COMMON: Any = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "font.size": 10,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "rmc-rl",  # so that the same numbers give the same file
}


class Style(NamedTuple):
    """How a method is drawn."""

    color: str
    linestyle: str
    marker: str


@dataclass(frozen=True)
class Estimate:
    """
    A number for each method, or several, with their intervals.

    :param value: ``()`` or ``(T,)``
    :param interval: ``(2,)`` or ``(2, T)``; None if there are too few seeds
    """

    value: np.ndarray
    interval: np.ndarray | None


class Line(NamedTuple):
    """
    Returns of a method at several values of a keyword.

    :param label: the method
    :param trained: the value it was trained with
    :param tested: the values it was tested with
    :param returns: for each of them, those of the seeds
    :param intervals: for each of them the 95 % interval, or None
    """

    label: str
    trained: Any
    tested: Sequence[Any]
    returns: Sequence[Sequence[float]]
    intervals: Sequence[np.ndarray | None]


def render(figure: Figure, form: str) -> bytes:
    """
    A figure as a file.

    :param figure: the figure
    :param form: "png" or "svg"
    """
    file = io.BytesIO()
    metadata = {"Date": None} if form == "svg" else {"Software": None}
    with matplotlib.rc_context(COMMON):  # the SVG writer reads its settings while it writes
        figure.savefig(file, format=form, dpi=120, metadata=metadata)
    return file.getvalue()


def themed(theme: str) -> Any:
    """
    A context in which figures are drawn for a light or a dark page.

    :param theme: "light" or "dark"
    """
    settings: Any = {**matplotlib.rcParamsDefault, **COMMON, **THEMES[theme], "backend": "agg"}
    return matplotlib.rc_context(settings)


def styles(groups: Sequence[Group]) -> dict[str, Style]:
    """
    A colour, line and marker for each method.

    :param groups: of all worlds
    """
    controls = {group.label for group in groups if group.is_control}
    found: dict[str, Style] = {}
    for label in methods(groups):
        index = len(found)
        line = LINES[index // len(COLOURS) % len(LINES)]
        style = Style(COLOURS[index % len(COLOURS)], line, MARKERS[index % len(MARKERS)])
        found[label] = Style(GREY, "--", "x") if label in controls else style
    return found


def learning_curves(groups: Sequence[Group], drawn: Mapping[str, Style], axis: str) -> Figure:
    """
    A panel for each world: thick lines are means over seeds, bands 95 % intervals; thin lines are seeds, if methods are few.

    :param groups: methods on worlds
    :param drawn: style of each method
    :param axis: "steps" or "seconds"
    """
    figure, panels = _panels(groups)
    for axes, members in panels:
        for group in members:
            style = drawn[group.label]
            for member in group.members if len(members) <= METHODS_WITH_SEEDS else ():
                axes.plot(getattr(member, axis), member.returns, color=style.color, linewidth=0.7, alpha=0.45)
            positions, means, band = group.curve(axis)
            line: dict[str, Any] = dict(color=style.color, linestyle=style.linestyle, linewidth=2)
            axes.plot(positions, means, label=group.label, marker=style.marker if len(positions) < 2 else None, **line)
            if band is not None:
                axes.fill_between(positions, *band, color=style.color, alpha=0.18, linewidth=0)
        _reference_lines(axes, members[0].world)
        axes.set(xlabel=f"{axis} of training", ylabel="return")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_xlim(left=0)
    _legend(figure, panels, drawn)
    return figure


def aggregates(estimates: Mapping[str, Mapping[str, Estimate]], drawn: Mapping[str, Style], what: str) -> Figure:
    """
    A panel for each aggregate with a row for each method.

    :param estimates: aggregate -> method -> number
    :param drawn: style of each method
    :param what: the numbers are aggregates of, as in "normalised score"
    """
    labels = list(next(iter(estimates.values())))
    figure = Figure(figsize=(2.9 * len(estimates), 1.3 + 0.32 * len(labels)), layout="constrained")
    for axes, (name, of_methods) in zip(figure.subplots(1, len(estimates), squeeze=False)[0], estimates.items(), strict=True):
        for row, label in enumerate(labels):
            estimate, style = of_methods[label], drawn[label]
            if estimate.interval is not None:
                low, high = estimate.interval
                axes.barh(row, high - low, left=low, height=0.5, color=style.color, alpha=0.35)
            axes.plot([float(estimate.value)], [row], marker="|", markersize=16, markeredgewidth=3, color=style.color)
        axes.set_yticks(range(len(labels)), labels if axes.get_subplotspec().is_first_col() else [""] * len(labels))
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.set_title(f"{name} (small is good)" if name == "optimality gap" else name)
        axes.set_xlabel(what)
        axes.use_sticky_edges = False  # otherwise a bar may touch the frame
        axes.margins(x=0.12)
        axes.locator_params(axis="x", nbins=4)
        axes.grid(axis="y", visible=False)
    return figure


def profiles(thresholds: np.ndarray, estimates: Mapping[str, Estimate], drawn: Mapping[str, Style], what: str) -> Figure:
    """
    Performance profiles: the share of runs above each score.

    :param thresholds: scores ``(T,)``
    :param estimates: method -> shares ``(T,)``
    :param drawn: style of each method
    :param what: the scores are, as in "normalised score"
    """
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for label, estimate in estimates.items():
        style = drawn[label]
        line: dict[str, Any] = dict(color=style.color, linestyle=style.linestyle, linewidth=2, drawstyle="steps-post")
        axes.plot(thresholds, estimate.value, label=label, **line)
        if estimate.interval is not None:
            axes.fill_between(
                thresholds, estimate.interval[0], estimate.interval[1], color=style.color, alpha=0.18, linewidth=0, step="post"
            )
    axes.set(xlabel=what, ylabel="share of runs above it", ylim=(-0.03, 1.03))
    _legend(figure, [(axes, [])], drawn)
    return figure


def improvement(estimates: Mapping[tuple[str, str], Estimate], labels: Sequence[str]) -> Figure:
    """
    A square for each pair of methods: how probably a run of the row's is better than one of the column's.

    :param estimates: (row, column) -> probability
    :param labels: the methods
    """
    size = 1 + 1.25 * len(labels)
    figure = Figure(figsize=(size + 1.6, size), layout="constrained")
    axes = figure.subplots()
    values = np.full((len(labels), len(labels)), np.nan)
    for (row, column), estimate in estimates.items():
        values[labels.index(row), labels.index(column)] = estimate.value
    image = axes.imshow(values, cmap="PuOr_r", vmin=0, vmax=1)
    for (row, column), estimate in estimates.items():
        text = f"{float(estimate.value):.2f}"
        if estimate.interval is not None:
            text += "\n[{:.2f}, {:.2f}]".format(*estimate.interval)
        dark = abs(float(estimate.value) - 0.5) > 0.3
        place = labels.index(column), labels.index(row)
        axes.text(*place, text, ha="center", va="center", fontsize=9, color="white" if dark else "black")
    names = [textwrap.fill(label, 16) for label in labels]
    turned: dict[str, Any] = dict(rotation=30, ha="right", rotation_mode="anchor") if max(map(len, labels)) > 8 else {}
    axes.set_xticks(range(len(labels)), names, **turned)
    axes.set_yticks(range(len(labels)), names)
    axes.set(xlabel="than a run of", ylabel="a run of", title="probability of being better")
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, shrink=0.8)
    return figure


def time_to_reach(groups: Sequence[Group], drawn: Mapping[str, Style], axis: str, thresholds: Mapping[str, float]) -> Figure:
    """
    A panel for each world, a row for each method: when each seed reached a return, and the median over all seeds.

    :param groups: methods on worlds
    :param drawn: style of each method
    :param axis: "steps" or "seconds"
    :param thresholds: world -> return to reach
    """
    groups = [group for group in groups if group.world.name in thresholds]
    figure, panels = _panels(groups, height=1.5 + 0.34 * max(_counts(groups)))
    for axes, members in panels:
        threshold = thresholds[members[0].world.name]
        ends = [max(float(getattr(member, axis)[-1]) for member in group.members) for group in members]
        for row, group in enumerate(members):
            style = drawn[group.label]
            times = np.sort(group.reached(threshold)[:, ("steps", "seconds").index(axis)])
            reached = times[np.isfinite(times)]
            axes.plot(reached, [row] * len(reached), "o", color=style.color, alpha=0.8)
            if len(reached) < len(times):
                axes.plot(
                    ends[row] + 0.04 * max(ends), row, ">", color=style.color, fillstyle="none", markersize=8, clip_on=False
                )
            low, high = times[(len(times) - 1) // 2], times[len(times) // 2]
            if math.isfinite(high):
                axes.plot([(low + high) / 2] * 2, [row - 0.32, row + 0.32], color=style.color, linewidth=3)
            note = f"{len(reached)} of {len(times)}"
            axes.annotate(
                note, (1.02, row), xycoords=("axes fraction", "data"), va="center", fontsize=9, annotation_clip=False
            )
        axes.set_yticks(range(len(members)), [group.label for group in members])
        axes.set_ylim(len(members) - 0.5, -0.5)
        axes.set_xlim(0, 1.08 * max(ends))
        axes.set_xlabel(f"{axis} to a return of {threshold:.3g}")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.grid(axis="y", visible=False)
    return figure


def generalisation_lines(
    keyword: str, lines: Sequence[Line], references: Mapping[Any, Reference], drawn: Mapping[str, Style], title: str
) -> Figure:
    """
    Returns against a keyword of the world.

    :param keyword: its name
    :param lines: one for each method, all trained with the same value
    :param references: for each tested value, what random, memoryless and perfect play reach
    :param drawn: style of each method
    :param title: the world
    """
    figure = Figure(figsize=(6.4, 3.9), layout="constrained")
    axes = figure.subplots()
    tested = sorted({shown(value): value for line in lines for value in line.tested}.values(), key=in_numeric_order)
    places, is_numeric = _places(axes, tested)
    for line in lines:
        style = drawn[line.label]
        xs = [places[shown(value)] for value in line.tested]
        means = [float(np.mean(each)) for each in line.returns]
        axes.plot(xs, means, label=line.label, color=style.color, linestyle=style.linestyle, marker=style.marker, linewidth=2)
        for x, each, band in zip(xs, line.returns, line.intervals, strict=True):
            if band is not None:
                axes.vlines(x, *band, color=style.color, linewidth=6, alpha=0.3)
            elif len(each) > 1:
                axes.plot([x] * len(each), each, ".", color=style.color, markersize=4, alpha=0.6)
    for name, colour, line_style in (("perfect", GREY, "-."), ("without memory", GREY, ":"), ("random", GREY, (0, (1, 4)))):
        field = name.replace("without memory", "memoryless")
        known = [(places[shown(value)], getattr(references.get(shown(value), Reference()), field)) for value in tested]
        known = [(x, y) for x, y in known if y is not None]
        if known:
            axes.plot(*zip(*known, strict=True), color=colour, linestyle=line_style, linewidth=1.2, label=f"{name} (stated)")
    trained = lines[0].trained
    if is_numeric:
        _mark_trained(axes, trained)
    elif shown(trained) in places:
        axes.axvline(places[shown(trained)], color=GREY, linewidth=8, alpha=0.25)
    axes.set(xlabel=f"{keyword} in the test (shaded: trained with {shown(trained)})", ylabel="return")
    axes.set_title(textwrap.fill(title, 70))
    _legend(figure, [(axes, [])], drawn, 5)
    return figure


def generalisation_grid(keyword: str, lines: Sequence[Line], title: str) -> Figure:
    """
    A panel for each method: the value of a keyword in training against that in the test.

    :param keyword: its name
    :param lines: one for each method and value in training
    :param title: the world
    """
    labels = list(dict.fromkeys(line.label for line in lines))
    trained = sorted({shown(line.trained): line.trained for line in lines}.values(), key=in_numeric_order)
    tested = sorted({shown(value): value for line in lines for value in line.tested}.values(), key=in_numeric_order)
    columns = min(PANELS, len(labels))
    rows = math.ceil(len(labels) / columns)
    width, height = max(2.6, 0.75 * len(tested) + 1), max(1.8, 0.55 * len(trained) + 1.2)
    figure = Figure(figsize=(width * columns + 0.8, height * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    means = {
        (line.label, shown(line.trained), shown(value)): float(np.mean(each))
        for line in lines
        for value, each in zip(line.tested, line.returns, strict=True)
    }
    low, high = min(means.values()), max(means.values())
    image: Any = None
    for index, axes in enumerate(grid.flat):
        if index >= len(labels):
            axes.set_visible(False)
            continue
        values = np.array([[means.get((labels[index], shown(a), shown(b)), np.nan) for b in tested] for a in trained])
        image = axes.imshow(values, cmap="cividis", vmin=low, vmax=max(high, low + 1e-9), aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            bright = value > low + 0.55 * (high - low)
            colour = "black" if bright else "white"
            text = "" if math.isnan(value) else f"{value:.2f}"
            axes.text(column, row, text, ha="center", va="center", fontsize=9, color=colour)
        axes.set_xticks(range(len(tested)), map(shown, tested))
        axes.set_yticks(range(len(trained)), map(shown, trained))
        axes.set(title=labels[index], xlabel=f"{keyword} in the test", ylabel="in training")
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=grid, label="return")
    figure.suptitle(textwrap.fill(title, 30 * columns), fontsize=10)
    return figure


def _counts(groups: Sequence[Group]) -> list[int]:
    """How many methods each world has."""
    names = [group.world.name for group in groups]
    return [names.count(name) for name in dict.fromkeys(names)]


def _panels(groups: Sequence[Group], height: float = 3.3) -> tuple[Figure, list[tuple[Axes, list[Group]]]]:
    """A figure with a panel for each world."""
    worlds: dict[str, list[Group]] = {}
    for group in groups:
        worlds.setdefault(group.world.name, []).append(group)
    columns = min(PANELS, len(worlds))
    rows = math.ceil(len(worlds) / columns)
    width = 6.4 if columns == 1 else 4.9
    figure = Figure(figsize=(width * columns, height * rows + 0.3), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in list(grid.flat)[len(worlds) :]:
        axes.set_visible(False)
    panels = list(zip(grid.flat, worlds.values(), strict=False))
    for axes, members in panels:
        axes.set_title(textwrap.fill(members[0].world.name, int(TITLE_WIDTH * width)))
    return figure, panels


def _legend(figure: Figure, panels: Sequence[tuple[Axes, Any]], drawn: Mapping[str, Style], most: int = 8) -> None:
    """One legend below all panels, the methods in the order of their styles."""
    handles: dict[str, Any] = {}
    for axes, _ in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    order = [label for label in drawn if label in handles] + [label for label in handles if label not in drawn]
    longest = max(map(len, handles))
    columns = max(1, min(most, len(handles), int(figure.get_figwidth() * 10) // (longest + 7)))
    figure.legend(
        [handles[label] for label in order], order, loc="outside lower center", ncols=columns, fontsize=9, handlelength=3.5
    )


def _reference_lines(axes: Axes, world: World) -> None:
    """Horizontal lines for the returns that a world states, with labels at the right that do not overlap."""
    stated = world.reference
    known = [("perfect", stated.perfect), ("without memory", stated.memoryless), ("random", stated.random)]
    lines: dict[float, list[str]] = {}
    for name, value in known:
        if value is not None:
            lines.setdefault(value, []).append(name)
    for value in lines:
        axes.axhline(value, color=GREY, linestyle=":", linewidth=1)
    low, high = axes.get_ylim()
    place = -math.inf
    for value in sorted(lines):
        place = max(value, place + NEAR * (high - low))
        text = "\n".join(lines[value]) if len(lines) < 2 else ", ".join(lines[value])
        axes.annotate(
            text.replace("without memory, random", "random, or\nwithout memory"),
            (1.01, place),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=8,
            annotation_clip=False,
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _places(axes: Axes, tested: Sequence[Any]) -> tuple[dict[str, float], bool]:
    """Where tested values lie on the horizontal axis, and whether it is one of numbers."""
    if not all(map(_is_number, tested)):
        axes.set_xticks(range(len(tested)), map(shown, tested))
        return {shown(value): float(index) for index, value in enumerate(tested)}, False
    if min(tested) > 0 and max(tested) / min(tested) >= 8:
        axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(list(tested)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    return {shown(value): float(value) for value in tested}, True


def _mark_trained(axes: Axes, trained: Any) -> None:
    if _is_number(trained):
        axes.axvline(trained, color=GREY, linewidth=8, alpha=0.25)
    elif isinstance(trained, list | tuple) and len(trained) == 2 and all(map(_is_number, trained)):
        axes.axvspan(*trained, color=GREY, alpha=0.25)
