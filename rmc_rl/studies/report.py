"""Tables as Markdown, CSV, LaTeX and HTML; a page with everything in one file; and the JSON that marl-eval reads."""

import base64
import csv
import html
import io
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rmc_rl.studies.comparison import Group

CURVE_POINTS = 50  # of each run in marl-eval's JSON
TEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", ">": r"$>$", "<": r"$<$"}
TEX |= {sign: f"\\{sign}" for sign in "&%$#_{}"}
STYLE = """
:root { color-scheme: light dark; --text: #1c1e21; --back: #ffffff; --line: #d0d4d9; --soft: #f2f4f6; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e6e8; --back: #15181c; --line: #3a4048; --soft: #20252b; } }
body { color: var(--text); background: var(--back); font: 16px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.2rem; }
img { max-width: 100%; height: auto; } code { background: var(--soft); padding: 0.1em 0.3em; overflow-wrap: anywhere; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 0.86rem; }
th, td { border-bottom: 1px solid var(--line); padding: 0.3rem 0.7rem 0.3rem 0; text-align: left; vertical-align: top; }
"""


class Table(NamedTuple):
    """
    A table of texts.

    :param titles: of the columns
    :param rows: as many cells each
    """

    titles: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """As Markdown, with columns that align in a terminal."""
        cells = [[cell.replace("|", "\\|") for cell in row] for row in (self.titles, *self.rows)]
        widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells]
        lines.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
        return "\n".join(lines) + "\n"

    def csv(self) -> str:
        """As CSV."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(self.titles)
        writer.writerows(self.rows)
        return file.getvalue()

    def tex(self) -> str:
        r"""As a LaTeX table, which needs ``\usepackage{booktabs}``."""
        lines = [" & ".join(map(_tex, row)) + r" \\" for row in (self.titles, *self.rows)]
        body = [r"\begin{tabular}{" + "l" * len(self.titles) + "}", r"\toprule", lines[0], r"\midrule", *lines[1:]]
        return "\n".join([*body, r"\bottomrule", r"\end{tabular}"]) + "\n"

    def html(self) -> str:
        """As HTML."""
        head = "".join(f"<th>{html.escape(title)}</th>" for title in self.titles)
        body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>\n" for row in self.rows)
        return f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>\n'


class Section(NamedTuple):
    """
    A part of the page.

    :param title: its heading
    :param text: sentences below it
    :param table: a table; None: there is none
    :param pictures: "light" and "dark" -> the same picture as SVG; empty: there is none
    :param alt: what the picture shows, for people who do not see it
    """

    title: str
    text: Sequence[str] = ()
    table: Table | None = None
    pictures: Mapping[str, bytes] = {}
    alt: str = ""


def page(title: str, sections: Sequence[Section]) -> str:
    """
    A page that needs no other file and runs no script. It is light or dark as the reader's system is.

    :param title: of the page
    :param sections: its parts
    """
    parts = [f"<h1>{html.escape(title)}</h1>\n"]
    for section in sections:
        parts.append(f"<h2>{html.escape(section.title)}</h2>\n")
        if len(section.text) == 1:
            parts.append(f"<p>{_text(section.text[0])}</p>\n")
        elif section.text:
            parts.append("<ul>" + "".join(f"<li>{_text(line)}</li>\n" for line in section.text) + "</ul>\n")
        if section.pictures:
            light, dark = (
                f"data:image/svg+xml;base64,{base64.b64encode(section.pictures[theme]).decode()}"
                for theme in ("light", "dark")
            )
            parts.append(
                f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
                f'<img src="{light}" alt="{html.escape(section.alt)}"></picture>\n'
            )
        if section.table is not None:
            parts.append(section.table.html())
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title>'
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head>\n<body>\n{"".join(parts)}</body></html>\n'
    )


def marl_eval(groups: Sequence[Group]) -> str:
    """
    The learning curves and the last returns as the JSON that marl-eval 0.0.4 reads.

    Its layout is environment -> task -> algorithm -> run -> step -> metric. It wants equally many steps in all runs, so curves
    are interpolated; metrics are "return" and, where floor and ceiling are known, "score". Names must not contain commas.

    :param groups: methods on worlds
    """
    found: dict[str, Any] = {}
    for group in groups:
        of_task = found.setdefault(group.world.env, {}).setdefault(group.world.name.replace(",", ";"), {})
        runs = of_task.setdefault(group.label.replace(",", ";"), {})
        for member in group.members:
            grid = np.linspace(member.steps[0], group.step, CURVE_POINTS)
            steps: dict[str, Any] = {
                f"step_{index}": {
                    "step_count": round(at),
                    **_metrics(group, float(np.interp(at, member.steps, member.returns))),
                }
                for index, at in enumerate(grid)
            }
            runs[f"seed_{member.value('seed')}"] = {**steps, "absolute_metrics": _metrics(group, member.at(group.step))}
    return json.dumps(found, indent=1) + "\n"


def _metrics(group: Group, value: float) -> dict[str, list[float]]:
    scores = {"score": [float(group.world.normalise(value))]} if group.world.is_normalised else {}
    return {"return": [value], **scores}


def _tex(text: str) -> str:
    return "".join(TEX.get(sign, sign) for sign in text)


def _text(line: str) -> str:
    """A sentence as HTML, with what stands between backquotes as code."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", html.escape(line))
