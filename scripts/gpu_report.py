"""What the checks of gpu_check.py found: the results of pytest and of benchmarks, and the report of all of them."""

import re
import shlex
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree


@dataclass(frozen=True)
class Check:
    """One check: a command for the interpreter, run in the checkout."""

    name: str
    title: str
    command: tuple[str, ...]
    is_tests: bool = False  # pytest, whose results are read; otherwise a script that prints tables
    must_pass: str = ""  # part of the names of tests, of which one must have passed
    gpus: int = 1
    minutes: int = 30  # after which it is ended


@dataclass
class Result:
    """What became of a check."""

    check: Check
    outcome: str  # passed, failed or not run
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)  # failures and reasons
    table: str = ""


def read_tests(check: Check, path: Path) -> Result:
    """
    The result of a check that runs pytest.

    :param check: the check
    :param path: the file that pytest's ``--junitxml`` has written; it may be missing
    """
    result = Result(check, "passed")
    names, reasons = [], Counter[str]()
    try:
        cases = list(ElementTree.parse(path).getroot().iter("testcase"))
    except (OSError, ElementTree.ParseError):
        cases = []
    for case in cases:
        name = f"{case.get('classname', '').removeprefix('tests.')}::{case.get('name')}"
        kinds = {child.tag: child for child in case}
        broken = kinds.get("failure", kinds.get("error"))
        if broken is not None:
            result.failed += 1
            result.notes.append(f"`{name}`: {first_line(broken.get('message') or broken.text)}")
        elif "skipped" in kinds:
            result.skipped += 1
            reasons[first_line(kinds["skipped"].get("message"))] += 1
        else:
            result.passed += 1
            names.append(name)
    result.notes += [f"{count} skipped: {reason}" for reason, count in reasons.items()]
    if not any(check.must_pass in name for name in names):
        what = f"no test of `{check.must_pass}` has passed" if check.must_pass else "no test has passed"
        result.notes.insert(0, what)
    if result.failed or not any(check.must_pass in name for name in names):
        result.outcome = "failed"
    return result


def read_table(check: Check, printed: str) -> Result:
    """
    The result of a check that prints tables.

    :param check: the check
    :param printed: what it printed
    """
    rows = [line for line in printed.splitlines() if line.startswith("|")]
    headings = sum(bool(re.fullmatch(r"[|\s-]+", line)) for line in rows)
    result = Result(check, "passed", passed=len(rows) - 2 * headings, table=printed.strip())
    if result.passed <= 0:
        result.passed, result.outcome = 0, "failed"
        result.notes.append("it has printed no row of a table")
    return result


def first_line(text: str | None) -> str:
    """The first line of a text, short enough for a list."""
    lines = (text or "").strip().splitlines()
    return lines[0][:200] if lines else "no reason"


def report(found: dict[str, Any], about: dict[str, str], results: Iterable[Result], all_checks: Iterable[Check]) -> str:
    """
    The report, in Markdown.

    :param found: what :func:`probe` returns
    :param about: further facts, by name
    :param results: of the checks that have ended
    :param all_checks: those that were asked for
    """
    results = list(results)
    cards = Counter(
        f"{name}, compute capability {capability}, {size / 1e9:,.0f} GB" for name, capability, size in found["cards"]
    )
    facts = {
        "card": "; ".join(f"{count} x {card}" for card, count in cards.items()),
        "driver": found["driver"],
        "torch": found["torch"],
        "CUDA of torch": found["cuda"],
        "cuDNN": found["cudnn"],
        "Triton": found["triton"] or "not installed",
        **about,
    }
    lines = [f"# GPU check: {found['cards'][0][0]}", "", "| | |", "| --- | --- |"]
    lines += [f"| {name} | {value} |" for name, value in facts.items()]
    lines += ["", 'Of tests, the counts are of tests; of tables, "passed" counts rows.', ""]
    lines += [
        "| check | outcome | passed | failed | skipped | seconds | printed |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    ended = {result.check.name: result for result in results}
    for check in all_checks:
        each = ended.get(check.name)
        if each is None:
            lines.append(f"| {check.name}: {check.title} | not reached | | | | | |")
            continue
        counts = f"{each.passed} | {each.failed} | {each.skipped} | {each.seconds:,.0f} | {check.name}.txt"
        lines.append(
            f"| {check.name}: {check.title} | {each.outcome} | {'| | | |' if each.outcome == 'not run' else counts} |"
        )
    for each in results:
        if each.notes or each.table:
            lines += ["", f"## {each.check.name}: {each.check.title}", ""]
            lines += [f"* {' '.join(note.split())}" for note in each.notes]
        if each.table:
            lines += [*([""] if each.notes else []), f"`python {shlex.join(each.check.command)}`", "", each.table]
    return "\n".join(lines) + "\n"
