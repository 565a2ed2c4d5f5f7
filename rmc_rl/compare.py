"""
Compare trained agents from the folders of their runs: python -m rmc_rl.compare runs=<folder or pattern> ...

  python -m rmc_rl.compare runs=runs                                  all runs below a folder, by whatever differs in them
  python -m rmc_rl.compare runs=runs/rmc_rl-Copy-v0 by=core           one world, the cores against each other
  python -m rmc_rl.compare runs='runs/*/gru,runs/*/rmc' x=seconds     patterns; curves over the seconds of training
  python -m rmc_rl.compare runs=runs by=core,algo.gamma threshold=0.9

It prints a table and writes a folder: report.html, one page with everything; table.md, table.csv and table.tex; runs.csv
with a row for each run; pictures as PNG and SVG; marl_eval.json. The pictures are learning curves, the time to a threshold,
the interquartile mean and other aggregates, performance profiles, the probability of improvement, and returns against a
keyword of the world, if `rmc_rl.evaluate` has played with other values of it.

Runs are seeds of one method if they differ in nothing but the seed. With by=..., the settings named there make the methods,
and runs of one method that differ in another setting, in the commit or in the number of parameters are refused: mix=true
averages them. Intervals are 95 % percentile bootstraps over seeds. Returns are means over the last training episodes. A
score is a return on a scale from the world's floor (play without memory, or random play) to its ceiling (perfect play).

It needs matplotlib and scipy: pip install 'rmc-rl[plots]'.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, ListConfig

from rmc_rl import __version__
from rmc_rl.command_line.app import run_verb
from rmc_rl.command_line.progress import say
from rmc_rl.command_line.schema import CompareKeys
from rmc_rl.envs import WORLDS
from rmc_rl.envs.base import load_world
from rmc_rl.errors import UsageError, require, require_choice, require_number, require_packages
from rmc_rl.runs.folder import stamp
from rmc_rl.runs.records import read_records, search_runs
from rmc_rl.studies.comparison import Group, Record, Reference, group_runs
from rmc_rl.studies.report import Section, Table, marl_eval, page

EXTRAS = ("matplotlib", "scipy")
AXES = ("steps", "seconds")
GIVEN = ("num_envs", "device", "render_mode")  # arguments of worlds that are not of the task


def compare(config: DictConfig, command: str | None = None) -> int:
    """
    Compare runs, print a table and write a report.

    :param config: checked; see ``configs/compare.yaml``
    :param command: the command line that repeats the comparison; None: it was started from Python
    :return: exit status 0
    :raises UsageError: for a mistake in the configuration, no runs, or runs that must not be averaged
    """
    require_packages("compare", EXTRAS, "plots")
    require_choice("x", config.x, AXES)
    if config.threshold is not None:
        require_number("threshold", config.threshold)
    notes: list[str] = []
    patterns = _names("runs", config.runs)
    runs = search_runs(patterns)
    records = _finished(read_records(runs, config.metric, notes.append), config.unfinished, notes.append)
    if config.x == "seconds":
        without = [record.path for record in records if not np.isfinite(record.seconds).all()]
        require(not without, "x=seconds needs runs whose progress.csv has the column time/time_elapsed", without)
    by = None if config.by is None else _names("by", config.by)
    groups = group_runs(records, by, config.mix, _reference, notes.append)
    folder = _make_folder(Path("runs", "comparisons", stamp()) if config.out is None else Path(config.out).expanduser())
    sections, table = _study(groups, config, folder, notes)
    say(table.markdown())
    for note in notes:
        say(f"- {note}")
    repeats = f"Made by `{command}`" if command else "Made from Python"
    head = Section("About", [f"{repeats}, rmc-rl {__version__}, from {len(records)} runs.", *notes])
    (folder / "report.html").write_text(page("Comparison of runs", [head, *sections]))
    say(f"written: {folder}/ ({len(list(folder.iterdir()))} files)")
    say(f"report: {folder / 'report.html'}")
    return 0


def _study(groups: list[Group], config: DictConfig, folder: Path, notes: list[str]) -> tuple[list[Section], Table]:
    """Write tables and pictures; returns the parts of the report and the main table. Adds to ``notes``."""
    from rmc_rl.studies import plots, results  # they need the extras

    thresholds = results.thresholds_of(groups, config.threshold)
    styles = plots.styles(groups)
    notes += results.differences(groups)
    table, numbers = results.main_table(groups, thresholds)
    runs = results.runs_table(groups, thresholds)

    def write(name: str, text: str | bytes) -> None:
        (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)

    def picture(name: str, draw: Callable[[], Any]) -> dict[str, bytes]:
        """Write a picture for a light page, return it for both."""
        found = {}
        for theme in ("light", "dark"):
            with plots.themed(theme):
                figure = draw()
                found[theme] = plots.render(figure, "svg")
                if theme == "light":
                    write(f"{name}.png", plots.render(figure, "png"))
                    write(f"{name}.svg", found[theme])
        return found

    write("table.md", table.markdown() + "\n" + "".join(f"- {note}\n" for note in notes))
    write("table.csv", numbers.csv())
    write("table.tex", table.tex())
    write("runs.csv", runs.csv())
    write("marl_eval.json", marl_eval(groups))
    reach = "The median over all seeds, where a seed that did not reach it counts as infinitely late."
    sections = [
        Section("Results", ["Mean over seeds [95 % interval] at the last step that all seeds have taken.", reach], table),
        Section(
            "Learning curves",
            ["Lines are means over seeds, thin lines single seeds, bands 95 % intervals, dotted lines what the world states."],
            pictures=picture("learning_curves", lambda: plots.learning_curves(groups, styles, config.x)),
            alt="return against training for each world and method",
        ),
    ]
    if thresholds:
        text = (
            "A dot is a seed, a bar the median over all seeds. A triangle marks the last step if some seeds did not reach it."
        )
        drawn = picture("time_to_threshold", lambda: plots.time_to_reach(groups, styles, config.x, thresholds))
        sections.append(Section("Time to a threshold", [text], pictures=drawn, alt="when each seed reached the threshold"))
    else:
        notes.append("no time to a threshold: give one as a return, as in threshold=0.9")
    shared = results.shared_scores(groups, notes.append)
    if shared is not None:
        of_worlds = f"Over {len(shared.worlds)} world{'s' * (len(shared.worlds) > 1)}: {'; '.join(shared.worlds)}."
        estimates = results.aggregates(shared)
        sections.append(
            Section(
                "Averages over worlds and seeds",
                [
                    of_worlds,
                    "The interquartile mean is that of the middle half of the runs; with fewer than 4 runs it is the mean.",
                ],
                results.aggregates_table(estimates),
                picture("aggregates", lambda: plots.aggregates(estimates, styles, shared.what)),
                "aggregates of the scores of each method",
            )
        )
        write("aggregates.csv", results.aggregates_table(estimates).csv())
        at, shares = results.profiles(shared)
        drawn = picture("performance_profiles", lambda: plots.profiles(at, shares, styles, shared.what))
        sections.append(Section("Performance profiles", [of_worlds], pictures=drawn, alt="share of runs above each score"))
    if shared is not None and len(shared.scores) > 1:
        better = results.improvements(shared)
        labels = list(shared.scores)
        drawn = picture("probability_of_improvement", lambda: plots.improvement(better, labels))
        text = "How probably a random run of one method is better than one of the other. 0.5: no difference."
        table_of = results.improvements_table(better)
        write("probability_of_improvement.csv", table_of.csv())
        sections.append(Section("Probability of improvement", [text], table_of, drawn, "probabilities for each pair"))
    elif shared is not None:
        notes.append("there is only one method, so nothing to compare it with")
    found = results.generalisations(groups, _reference, _defaults, notes.append)
    for index, each in enumerate(found):
        name = f"generalisation_{each.keyword}" + (
            f"_{index + 1}" if len({other.keyword for other in found}) < len(found) else ""
        )
        title = f"Generalisation: {each.keyword} on {each.world.name}"
        if len({str(line.trained) for line in each.lines}) > 1:
            drawn = picture(name, lambda each=each: plots.generalisation_grid(each.keyword, each.lines, each.world.name))  # type: ignore[misc]
        else:
            drawn = picture(
                name,
                lambda each=each: plots.generalisation_lines(  # type: ignore[misc]
                    each.keyword, each.lines, each.references, styles, each.world.name
                ),
            )
        table_of = results.generalisation_table([each])
        sections.append(Section(title, ["Mean return of the trained agents."], table_of, drawn, "return against the keyword"))
    if found:
        write("generalisation.csv", results.generalisation_table(found).csv())
    sections += [
        Section("Settings that differ", ["Besides the arguments of different cores."], results.settings_table(groups)),
        Section("Versions", [], results.versions_table(groups)),
        Section("Runs", [], runs),
    ]
    return sections, table


def _names(key: str, value: Any) -> list[str]:
    """A list, or texts with commas between them. A text that is the path of a folder is one name."""
    if isinstance(value, ListConfig | list):
        names = [str(each) for each in value]
    else:
        names = [str(value)] if key == "runs" and Path(str(value)).expanduser().exists() else str(value).split(",")
    require(all(name.strip() for name in names) and bool(names), f"{key} must be names with commas between them", value)
    return names


def _finished(records: list[Record], unfinished: bool, note: Callable[[str], None]) -> list[Record]:
    """The runs that have taken all their steps, or all runs."""
    stopped = [record for record in records if not record.finished]
    if unfinished:
        for record in stopped:
            note(f"unfinished: {_progress(record)}; its group is read at the last step that all of its seeds have taken")
        return records
    rule = "no run has taken all its steps yet; unfinished=true compares runs at the last step that all seeds have taken"
    require(len(stopped) < len(records), rule, [_progress(record) for record in stopped[:3]])
    for record in stopped:
        note(f"left out because it is unfinished: {_progress(record)} (unfinished=true takes it)")
    return [record for record in records if record.finished]


def _progress(record: Record) -> str:
    total = record.settings.get("total_timesteps")
    return f"{record.path} at {record.steps[-1]:,.0f} of {total if total is None else format(total, ',')} steps"


def _make_folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.html").touch()
    except (OSError, ValueError) as error:
        raise UsageError(f"out must be a folder that can be written to, got '{folder}': {error}") from None
    return folder


def _reference(env: str, env_kwargs: dict[str, Any]) -> Reference:
    """What a world states about random, memoryless and perfect play; nothing for other environments."""
    if env not in WORLDS:
        return Reference()
    try:
        return Reference(*load_world(WORLDS[env])(1, **env_kwargs).returns())
    except (UsageError, TypeError):  # keywords that another version had
        return Reference()


def _defaults(env: str) -> dict[str, Any]:
    """The default values of a world's keywords; nothing for other environments."""
    if env not in WORLDS:
        return {}
    parameters = inspect.signature(load_world(WORLDS[env])).parameters
    return {name: each.default for name, each in parameters.items() if each.default is not each.empty and name not in GIVEN}


def main() -> None:
    """The command line."""
    run_verb(compare, "compare", __doc__ or "", CompareKeys)


if __name__ == "__main__":
    main()
