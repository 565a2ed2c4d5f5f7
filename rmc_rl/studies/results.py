"""What a comparison finds: tables and estimates from groups of runs."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rmc_rl.studies import statistics
from rmc_rl.studies.comparison import (
    CORE,
    NOT_SET,
    Evaluation,
    Group,
    Reference,
    World,
    differing_keys,
    in_numeric_order,
    methods,
    shown,
)
from rmc_rl.studies.plots import Estimate, Line
from rmc_rl.studies.report import Table

THRESHOLD = 0.95  # of the way from floor to ceiling
PROFILE_POINTS = 101
DEFAULT = "default"  # the value of a keyword that nobody knows


class Shared(NamedTuple):
    """
    What is averaged over worlds.

    :param scores: method -> an array of scores for each world
    :param worlds: names of the worlds
    :param what: the scores are: "normalised score" or "return"
    """

    scores: dict[str, list[np.ndarray]]
    worlds: list[str]
    what: str


def thresholds_of(groups: Sequence[Group], threshold: float | None) -> dict[str, float]:
    """
    The return that counts as reached, for each world that has one.

    :param groups: methods on worlds
    :param threshold: a score on worlds whose floor and ceiling are known, a return on others; None: ``THRESHOLD`` as a score
    """
    worlds = {group.world.name: group.world for group in groups}
    found = {
        name: world.as_return(THRESHOLD if threshold is None else threshold)
        for name, world in worlds.items()
        if world.is_normalised or threshold is not None
    }
    return {name: float(value) for name, value in found.items()}


def main_table(groups: Sequence[Group], thresholds: Mapping[str, float]) -> tuple[Table, Table]:
    """
    A row for each method on each world, once for people and once for programs.

    :param groups: methods on worlds
    :param thresholds: world -> return to reach
    """
    commits = {member.commit for group in groups for member in group.members}
    titles = [
        "world",
        "method",
        "seeds",
        "steps",
        "parameters (core)",
        "state",
        "return",
        "score",
        "steps to threshold",
        "seconds to threshold",
    ]
    if len(commits) > 1:
        titles.append("commit")
    numbers = (
        "world method seeds steps parameters core_parameters state return return_low return_high score score_low score_high"
    )
    numbers += " threshold reached median_steps median_seconds commits"
    people, programs = [], []
    for group in groups:
        threshold = thresholds.get(group.world.name)
        of_return, of_score = (_mean(values) for values in (group.returns, group.scores))
        sizes = [_only({member.sizes.get(name) for member in group.members}) for name in ("parameters", "core", "state")]
        own = sorted({str(member.commit)[:7] if member.commit else "unknown" for member in group.members})
        parameters = "?" if sizes[0] is None else f"{sizes[0]:,} ({sizes[1]:,})"
        row = [group.world.name, group.label, str(len(group.members)), f"{group.step:,.0f}", parameters, _count(sizes[2])]
        row += [_cell(of_return), _cell(of_score) if group.world.is_normalised else ""]
        reached = None if threshold is None else group.reached(threshold)
        row += ["", ""] if reached is None else [_time(reached[:, column], group.step, column) for column in (0, 1)]
        people.append(row + ([", ".join(own)] if len(commits) > 1 else []))
        line: list[Any] = [group.world.name, group.label, len(group.members), group.step, *sizes, *of_return]
        line += [*of_score] if group.world.is_normalised else [None] * 3
        if reached is None:
            line += [None] * 4
        else:
            medians = [statistics.median_to_reach(column) for column in reached.T]
            line += [threshold, int(np.isfinite(reached[:, 0]).sum()), *medians]
        programs.append([*line, " ".join(own)])
    return Table(titles, people), Table(numbers.split(), [[_plain(value) for value in row] for row in programs])


def runs_table(groups: Sequence[Group], thresholds: Mapping[str, float]) -> Table:
    """
    A row for each run that counts.

    :param groups: methods on worlds
    :param thresholds: world -> return to reach
    """
    titles = "world method seed steps total_steps finished return score steps_to_threshold seconds_to_threshold seconds"
    titles += " parameters started commit path command"
    rows = []
    for group in groups:
        threshold = thresholds.get(group.world.name)
        for member in group.members:
            value = member.at(group.step)
            score = float(group.world.normalise(value)) if group.world.is_normalised else None
            times = (None, None) if threshold is None else member.first(threshold, group.step)
            total = member.settings.get("total_timesteps")
            row = [group.world.name, group.label, member.value("seed"), member.steps[-1], total, shown(member.finished), value]
            row += [score, *times, member.seconds[-1], member.sizes.get("parameters"), member.started, member.commit]
            rows.append([_plain(each) for each in [*row, member.path, member.command]])
    return Table(titles.split(), rows)


def settings_table(groups: Sequence[Group]) -> Table:
    """
    The settings in which methods differ on the same world; the core's own are left out where cores differ.

    :param groups: methods on worlds
    """
    rows = []
    for name in dict.fromkeys(group.world.name for group in groups):
        members = [(group, member) for group in groups if group.world.name == name for member in group.members]
        for key in differing_keys([member for _, member in members]):
            values: dict[str, dict[str, None]] = {}
            for group, member in members:
                values.setdefault(shown(member.value(key)), {})[group.label] = None
            if not (key.startswith("core.") and key != CORE and NOT_SET in values):
                rows.append([name, key, "; ".join(f"{value}: {', '.join(labels)}" for value, labels in values.items())])
    return Table(["world", "setting", "value: methods"], rows)


def versions_table(groups: Sequence[Group]) -> Table:
    """
    The versions of packages, and the commits, with the number of runs of each.

    :param groups: methods on worlds
    """
    counts: dict[str, dict[str, int]] = {}
    for member in (member for group in groups for member in group.members):
        for name, version in [*member.versions.items(), ("commit", member.commit)]:
            of_name = counts.setdefault(name, {})
            of_name[shown(version)] = of_name.get(shown(version), 0) + 1
    return Table(
        ["package", "version (runs)"],
        [[name, ", ".join(f"{version} ({count})" for version, count in found.items())] for name, found in counts.items()],
    )


def differences(groups: Sequence[Group]) -> list[str]:
    """
    What a reader must know before comparing the methods: other budgets, commits, sizes or versions, few seeds, no control.

    :param groups: methods on worlds
    :return: sentences
    """
    said = []
    for name in dict.fromkeys(group.world.name for group in groups):
        members = [group for group in groups if group.world.name == name]
        for title, values in (
            ("budgets", {group.label: f"{group.step:,.0f} steps" for group in members}),
            ("numbers of parameters", {group.label: _sizes(group, "parameters") for group in members if not group.is_control}),
            ("commits", {group.label: _commits(group) for group in members}),
        ):
            if len(set(values.values())) > 1:
                said.append(f"{name}: {title} differ: {'; '.join(f'{label} {value}' for label, value in values.items())}")
        few = [group for group in members if len(group.members) < statistics.SEEDS_FOR_INTERVAL]
        rough = [group for group in members if statistics.SEEDS_FOR_INTERVAL <= len(group.members) < statistics.SEEDS_ENOUGH]
        counts = "; ".join(f"{group.label} {len(group.members)}" for group in few)
        if few:
            said.append(f"warning: {name}: fewer than 3 seeds, so no interval: {counts}")
        if rough:
            labels = ", ".join(group.label for group in rough)
            said.append(f"{name}: fewer than 5 seeds, so intervals are rough, usually too narrow: {labels}")
        if not any(group.is_control for group in members):
            said.append(f"{name}: no run without memory (core=memoryless), the control of every comparison of memories")
        world = members[0].world
        if not world.is_normalised:
            said.append(
                f"{name}: returns are not normalised, because the world states no floor or no ceiling with these keywords"
            )
        else:
            floor = "play without memory" if world.reference.memoryless is not None else "random play"
            said.append(
                f"{name}: a score of 0 is a return of {world.floor:.3g} ({floor}), "
                f"one of 1 a return of {world.reference.perfect:.3g} (perfect play)"
            )
    versions = {
        tuple(sorted((k, shown(v)) for k, v in member.versions.items())) for group in groups for member in group.members
    }
    if len(versions) > 1:
        said.append("versions of packages differ between runs: see the report")
    return said


def shared_scores(groups: Sequence[Group], say: Callable[[str], None]) -> Shared | None:
    """
    The scores that may be averaged over worlds: of the worlds that all methods have run on.

    :param groups: methods on worlds
    :param say: is told which worlds are left out
    :return: None if there is nothing to average
    """
    labels = methods(groups)
    worlds: dict[str, dict[str, Group]] = {}
    for group in groups:
        worlds.setdefault(group.world.name, {})[group.label] = group
    complete = {name: found for name, found in worlds.items() if len(found) == len(labels)}
    for name in worlds.keys() - complete.keys():
        missing = [label for label in labels if label not in worlds[name]]
        say(f"{name} is left out of the averages over worlds: no run of {', '.join(missing)}")
    normalised = {name: found for name, found in complete.items() if next(iter(found.values())).world.is_normalised}
    for name in complete.keys() - normalised.keys() if len(complete) > 1 else ():
        say(f"{name} is left out of the averages over worlds: its returns cannot be normalised")
    chosen, what = (normalised, "normalised score") if normalised else (complete, "return")
    if not chosen or (what == "return" and len(chosen) > 1):
        say("nothing is averaged over worlds, because no world has normalised scores of all methods")
        return None
    return Shared({label: [found[label].scores for found in chosen.values()] for label in labels}, list(chosen), what)


def estimate(scores: Sequence[np.ndarray], statistic: Callable[..., np.ndarray]) -> Estimate:
    """
    A statistic with its interval.

    :param scores: an array for each world
    :param statistic: one of :mod:`rmc_rl.studies.statistics`
    """
    return Estimate(np.asarray(statistic(*scores)), statistics.interval(scores, statistic))


def aggregates(shared: Shared) -> dict[str, dict[str, Estimate]]:
    """
    Aggregate -> method -> number.

    :param shared: the scores
    """
    names = [name for name in statistics.AGGREGATES if shared.what == "normalised score" or name != "optimality gap"]
    return {
        name: {label: estimate(scores, statistics.AGGREGATES[name]) for label, scores in shared.scores.items()}
        for name in names
    }


def aggregates_table(found: Mapping[str, Mapping[str, Estimate]]) -> Table:
    """
    A row for each method, a column for each aggregate.

    :param found: what :func:`aggregates` returned
    """
    labels = list(next(iter(found.values())))
    rows = [[label, *(_estimate(of_methods[label]) for of_methods in found.values())] for label in labels]
    return Table(["method", *found], rows)


def profiles(shared: Shared) -> tuple[np.ndarray, dict[str, Estimate]]:
    """
    Scores, and for each method the share of runs above them.

    :param shared: the scores
    """
    everything = np.concatenate([each for scores in shared.scores.values() for each in scores])
    low, high = (0.0, 1.0) if shared.what == "normalised score" else (float(everything.min()), float(everything.max()))
    low, high = min(low, float(everything.min())), max(high, float(everything.max()))
    thresholds = np.linspace(low - 0.02 * (high - low), high, PROFILE_POINTS)
    statistic = statistics.performance_profile(thresholds)
    return thresholds, {label: estimate(scores, statistic) for label, scores in shared.scores.items()}


def improvements(shared: Shared) -> dict[tuple[str, str], Estimate]:
    """
    For each pair of methods, the probability that a run of the first is better than one of the second.

    :param shared: the scores
    """
    return {
        (first, second): estimate([*shared.scores[first], *shared.scores[second]], statistics.probability_of_improvement)
        for first in shared.scores
        for second in shared.scores
        if first != second
    }


def improvements_table(found: Mapping[tuple[str, str], Estimate]) -> Table:
    """
    A row for each pair of methods.

    :param found: what :func:`improvements` returned
    """
    rows = [[first, second, _estimate(each)] for (first, second), each in found.items()]
    return Table(["a run of", "is better than one of", "probability"], rows)


class Generalisation(NamedTuple):
    """
    Returns of trained agents against a keyword of the world.

    :param world: its id and the keywords that stay the same
    :param keyword: the one that varies
    :param lines: one for each method and value in training
    :param references: tested value as text -> what random, memoryless and perfect play reach
    """

    world: World
    keyword: str
    lines: list[Line]
    references: dict[str, Reference]


def generalisations(
    groups: Sequence[Group],
    reference: Callable[[str, dict[str, Any]], Reference],
    defaults: Callable[[str], dict[str, Any]],
    say: Callable[[str], None],
) -> list[Generalisation]:
    """
    What evaluations at other values of a keyword have found.

    :param groups: methods on worlds
    :param reference: from an environment's id and keywords to what is known of it
    :param defaults: from an environment's id to the default values of its keywords, as far as they are known
    :param say: is told which evaluations do not count
    """
    kind = _kind_of_evaluations(groups, say)
    # (world without the keyword, keyword) -> (method, value in training) -> value in the test -> seed -> return
    found: dict[tuple[str, str], dict[tuple[str, str], dict[str, dict[str, float]]]] = {}
    values: dict[str, Any] = {}
    worlds: dict[tuple[str, str], World] = {}
    members = [(group.label, member) for group in groups for member in group.members]
    for label, member in members:
        usual = defaults(member.env)
        trained = usual | member.env_kwargs
        for each in member.evaluations:
            if (each.model, each.deterministic) != kind or each.env != member.env:
                continue
            tested = usual | each.env_kwargs
            keywords = list(dict.fromkeys([*trained, *tested]))
            changed = [key for key in keywords if trained.get(key, DEFAULT) != tested.get(key, DEFAULT)]
            for keyword in changed if len(changed) == 1 else [] if changed else keywords:
                world = World(member.env, {key: value for key, value in member.env_kwargs.items() if key != keyword})
                worlds[world.name, keyword] = world
                pair = trained.get(keyword, DEFAULT), tested.get(keyword, DEFAULT)
                values |= {shown(value): value for value in pair}
                of_method = found.setdefault((world.name, keyword), {}).setdefault((label, shown(pair[0])), {})
                # the newest is last
                of_method.setdefault(shown(pair[1]), {})[shown(member.value("seed"))] = each.mean
    results = []
    for place, of_methods in found.items():
        tested_values = {value for each in of_methods.values() for value in each}
        if len(tested_values) < 2:
            continue
        lines = []
        for (label, trained_with), of_values in of_methods.items():
            in_order = sorted(of_values, key=lambda text: in_numeric_order(values[text]))
            returns = [list(of_values[text].values()) for text in in_order]
            bands = [statistics.interval([np.array(each)], statistics.mean) for each in returns]
            lines.append(Line(label, values[trained_with], [values[text] for text in in_order], returns, bands))
        world = worlds[place]
        references = {text: reference(world.env, {**world.env_kwargs, place[1]: values[text]}) for text in tested_values}
        results.append(Generalisation(world, place[1], lines, references))
    return results


def generalisation_table(found: Sequence[Generalisation]) -> Table:
    """
    A row for each method, value in training and value in the test.

    :param found: what :func:`generalisations` returned
    """
    rows = []
    for each in found:
        for line in each.lines:
            for value, returns, band in zip(line.tested, line.returns, line.intervals, strict=True):
                cell = _estimate(Estimate(np.asarray(np.mean(returns)), band))
                rows.append(
                    [each.world.name, line.label, each.keyword, shown(line.trained), shown(value), str(len(returns)), cell]
                )
    return Table(["world", "method", "keyword", "trained with", "tested with", "seeds", "return"], rows)


def _kind_of_evaluations(groups: Sequence[Group], say: Callable[[str], None]) -> tuple[str, bool | None] | None:
    """Which model and which way of acting most evaluations have: others are not mixed with them."""
    evaluations: list[Evaluation] = [each for group in groups for member in group.members for each in member.evaluations]
    counts: dict[tuple[str, bool | None], int] = {}
    for each in evaluations:
        counts[each.model, each.deterministic] = counts.get((each.model, each.deterministic), 0) + 1
    if not counts:
        return None
    kind = max(counts, key=lambda key: counts[key])
    left_out = len(evaluations) - counts[kind]
    if left_out:
        say(
            f"generalisation shows model={kind[0]} deterministic={shown(kind[1])}; "
            f"{left_out} evaluations of other kinds are left out"
        )
    return kind


def _mean(values: np.ndarray) -> tuple[float, float | None, float | None]:
    """Mean and interval."""
    band = statistics.interval([values], statistics.mean)
    return (float(values.mean()), *((None, None) if band is None else map(float, band)))


def _cell(value: Sequence[float | None]) -> str:
    middle, low, high = value
    return f"{middle:.3f}" if low is None else f"{middle:.3f} [{low:.3f}, {high:.3f}]"


def _estimate(each: Estimate) -> str:
    return _cell([float(each.value), *((None, None) if each.interval is None else map(float, each.interval))])


def _time(times: np.ndarray, last: float, column: int) -> str:
    """The median over all seeds, and how many reached it."""
    median, reached = statistics.median_to_reach(times), int(np.isfinite(times).sum())
    if math.isfinite(median):
        text = f"{median:,.0f}"
    elif column == 0:
        text = f"> {last:,.0f}"
    else:
        text = "not reached" if reached == 0 else "not by half"
    return f"{text} ({reached} of {len(times)})"


def _only(values: set[Any]) -> Any:
    """The one value, None if there are several."""
    return next(iter(values)) if len(values) == 1 else None


def _count(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


def _plain(value: Any) -> str:
    """A value for a program to read: nothing where it is unknown or infinite."""
    if value is None:
        return ""
    if isinstance(value, float | np.floating):
        return "" if math.isnan(value) else "inf" if math.isinf(value) else f"{value:.10g}"
    return str(value)


def _sizes(group: Group, name: str) -> str:
    return " or ".join(sorted({_count(member.sizes.get(name)) for member in group.members}))


def _commits(group: Group) -> str:
    return " or ".join(sorted({str(member.commit)[:7] if member.commit else "unknown" for member in group.members}))
