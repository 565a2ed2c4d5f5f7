"""
From runs to groups that may be averaged: which runs are seeds of the same method on the same world.

A world is an environment's id with its keywords. A method is whatever else the configuration says, apart from the seed and
from what does not decide what is learned. Runs that differ in anything are never averaged unless the caller asks for it.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from rmc_rl.errors import UsageError, require, unknown
from rmc_rl.studies.statistics import first_reached, interval, mean

# keys that do not decide what is learned; all keys below them as well
FREE = (
    "checkpoint_every",
    "evaluate_every",
    "evaluation",
    "family",
    "hydra",
    "keep_checkpoints",
    "name",
    "resume",
    "runs_dir",
    "seed",
)
SPEED = ("core.kernel", "device", "env_device", "num_threads", "processes")  # keys that decide how fast it is learned
CONTROL = "memoryless"  # the core without memory
CORE = "core.name"
COMMIT, PARAMETERS = "commit", "parameters"  # what a run says besides its configuration
ALIASES = {"core": CORE, "algo": "algo.name"}
NOT_SET = "(not set)"  # shown for a key that a configuration lacks


class Reference(NamedTuple):
    """
    Mean returns of three players on a world, each None where it is not known.

    :param random: draws its actions from the action space
    :param memoryless: the best known player without memory
    :param perfect: the best player
    """

    random: float | None = None
    memoryless: float | None = None
    perfect: float | None = None


UNKNOWN = Reference()


class Evaluation(NamedTuple):
    """
    Episodes that a trained agent played.

    :param env: the environment's id
    :param env_kwargs: its keywords
    :param model: "last", "best" or a file
    :param deterministic: whether the likeliest actions were taken; None: unknown
    :param episodes: how many; None: unknown
    :param mean: the mean return
    :param when: sorts evaluations by time
    """

    env: str
    env_kwargs: dict[str, Any]
    model: str
    deterministic: bool | None
    episodes: int | None
    mean: float
    when: str


@dataclass(frozen=True)
class Record:
    """
    One run as numbers and settings.

    :param path: its folder
    :param settings: the configuration, with dotted keys; ``env_kwargs`` is one value
    :param steps: environment steps at each row of the learning curve, ``(T,)``
    :param seconds: since the start of training, ``(T,)``
    :param returns: mean return of the last training episodes, ``(T,)``
    :param started: the time as text, which sorts; "" if unknown
    :param commit: of the code; None if unknown
    :param command: that repeats the run; None if unknown
    :param versions: package -> version
    :param sizes: "parameters", "core" and "state": numbers in the policy, in its core and in its state; empty if unknown
    :param evaluations: of the trained agent
    """

    path: str
    settings: dict[str, Any]
    steps: np.ndarray
    seconds: np.ndarray
    returns: np.ndarray
    started: str = ""
    commit: str | None = None
    command: str | None = None
    versions: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    evaluations: tuple[Evaluation, ...] = ()

    @property
    def env(self) -> str:
        """The environment's id."""
        return str(self.settings["env"])

    @property
    def env_kwargs(self) -> dict[str, Any]:
        """The environment's keywords."""
        return dict(self.settings.get("env_kwargs") or {})

    @property
    def finished(self) -> bool:
        """Whether the run has taken the steps that it was meant to take."""
        return bool(self.steps[-1] >= self.settings["total_timesteps"])

    def value(self, key: str) -> Any:
        """A setting, a keyword of the environment, the commit or the number of parameters; ``NOT_SET`` if there is none."""
        if key in (COMMIT, PARAMETERS):
            return {COMMIT: self.commit, PARAMETERS: self.sizes.get("parameters")}[key]
        node, _, name = key.partition(".")
        return self.env_kwargs.get(name, NOT_SET) if node == "env_kwargs" else self.settings.get(key, NOT_SET)

    def at(self, step: float) -> float:
        """The return at a step: that of the last row up to it."""
        return float(self.returns[np.flatnonzero(self.steps <= step)[-1]])

    def first(self, threshold: float, step: float) -> tuple[float, float]:
        """Steps and seconds until the return first reached a threshold, infinite if it did not up to a step."""
        index = first_reached(self.returns[self.steps <= step], threshold)
        return (np.inf, np.inf) if index is None else (float(self.steps[index]), float(self.seconds[index]))


@dataclass(frozen=True)
class World:
    """
    An environment with its keywords.

    :param env: its id
    :param env_kwargs: its keywords, without those that the methods differ in
    :param reference: what random, memoryless and perfect play reach
    """

    env: str
    env_kwargs: dict[str, Any]
    reference: Reference = UNKNOWN

    @property
    def name(self) -> str:
        """The id with the keywords."""
        keywords = ", ".join(f"{key}={shown(value)}" for key, value in sorted(self.env_kwargs.items()))
        return f"{self.env} ({keywords})" if keywords else self.env

    @property
    def floor(self) -> float | None:
        """The return without memory, or of random play if that is unknown."""
        return self.reference.random if self.reference.memoryless is None else self.reference.memoryless

    @property
    def is_normalised(self) -> bool:
        """Whether floor and ceiling are known."""
        return self.floor is not None and self.reference.perfect is not None and self.reference.perfect > self.floor

    def normalise(self, returns: Any) -> np.ndarray:
        """Returns as scores: 0 at the floor, 1 at the ceiling; unchanged if one of the two is unknown."""
        floor, span = self._scale()
        return (np.asarray(returns, dtype=float) - floor) / span

    def as_return(self, score: float) -> float:
        """The return that belongs to a score."""
        floor, span = self._scale()
        return floor + score * span

    def _scale(self) -> tuple[float, float]:
        """The return of score 0, and how much more is a score of 1."""
        floor, ceiling = self.floor, self.reference.perfect
        known = self.is_normalised and floor is not None and ceiling is not None
        return (floor, ceiling - floor) if known else (0.0, 1.0)  # type: ignore[operator, return-value]


@dataclass(frozen=True)
class Group:
    """
    The seeds of one method on one world.

    :param world: the world
    :param label: the method's name
    :param members: one run for each seed
    """

    world: World
    label: str
    members: tuple[Record, ...]

    @property
    def step(self) -> float:
        """The last step that all members have taken."""
        return float(min(member.steps[-1] for member in self.members))

    @property
    def returns(self) -> np.ndarray:
        """The return of each member at :attr:`step`."""
        return np.array([member.at(self.step) for member in self.members])

    @property
    def scores(self) -> np.ndarray:
        """The normalised :attr:`returns`."""
        return self.world.normalise(self.returns)

    @property
    def is_control(self) -> bool:
        """Whether the agents have no memory."""
        return all(member.settings.get(CORE) == CONTROL for member in self.members)

    def reached(self, threshold: float) -> np.ndarray:
        """Steps and seconds until each member's return first reached a threshold, infinite if it did not, ``(members, 2)``."""
        return np.array([member.first(threshold, self.step) for member in self.members])

    def curve(self, axis: str, points: int = 100) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """
        The mean learning curve over the members, where all of them have one.

        :param axis: "steps" or "seconds"
        :param points: at most how many
        :return: positions on the axis ``(T,)``, means ``(T,)``, 95 % intervals ``(2, T)`` or None
        """
        positions = [getattr(member, axis) for member in self.members]
        low, high = max(each[0] for each in positions), min(each[-1] for each in positions)
        if low > high:
            return np.zeros(0), np.zeros(0), None
        grid = np.linspace(low, high, points if low < high else 1)
        # (points, members)
        curves = np.stack(
            [np.interp(grid, each, member.returns) for each, member in zip(positions, self.members, strict=True)], -1
        )
        return grid, curves.mean(-1), interval([curves], mean)


def shown(value: Any) -> str:
    """A value of a setting as a person writes it."""
    if isinstance(value, dict):
        return ", ".join(f"{key}={shown(each)}" for key, each in value.items()) or "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(shown, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def in_numeric_order(value: Any) -> tuple[bool, float, str]:
    """A key for sorting values of a setting: numbers first, in order, then all others as text."""
    is_number = isinstance(value, int | float)
    return not is_number, float(value) if is_number else 0.0, shown(value)


def group_runs(
    records: Sequence[Record],
    by: Sequence[str] | None,
    mix: bool,
    reference: Callable[[str, dict[str, Any]], Reference],
    say: Callable[[str], None],
) -> list[Group]:
    """
    Find out which runs are seeds of the same method.

    :param records: runs with learning curves
    :param by: settings that make the methods; None: whatever differs
    :param mix: whether runs of one method may differ in other settings
    :param reference: from an environment's id and keywords to what is known of it
    :param say: is told what the reader of the comparison must know
    :return: sorted by world and method, the control last
    :raises UsageError: if runs of one method differ in other settings, without ``mix``
    """
    by = None if by is None else [ALIASES.get(key, key) for key in by]
    _check_by(records, by)
    apart = {key.partition(".")[2] for key in by or () if key.startswith("env_kwargs.")}
    worlds: dict[str, list[Record]] = {}
    for record in records:
        kept = {key: value for key, value in record.env_kwargs.items() if key not in apart}
        worlds.setdefault(World(record.env, kept).name, []).append(record)
    label_keys = _label_keys(worlds.values()) if by is None else by
    hidden = _hidden_keys(records, label_keys)
    groups = []
    for name, members in sorted(worlds.items()):
        found: dict[str, list[Record]] = {}
        for record in members:
            found.setdefault(_label(record, label_keys, hidden), []).append(record)
        kept = {key: value for key, value in members[0].env_kwargs.items() if key not in apart}
        world = World(members[0].env, kept, _reference(name, members, reference, say))
        for label, runs in found.items():
            _check_same(label, name, runs, label_keys, apart, mix, say)
            groups.append(Group(world, label, _one_per_seed(label, name, runs, say)))
    return sorted(groups, key=lambda group: (group.world.name, group.is_control, group.label))


def methods(groups: Sequence[Group]) -> list[str]:
    """The names of all methods, sorted, the control last."""
    return sorted({group.label for group in groups}, key=lambda label: _order(groups, label))


def _order(groups: Sequence[Group], label: str) -> tuple[bool, str]:
    return all(group.is_control for group in groups if group.label == label), label


def differing_keys(records: Sequence[Record], ignored: Iterable[str] = FREE) -> list[str]:
    """
    The settings in which runs differ, the core's name first.

    :param records: the runs
    :param ignored: keys that do not count, with all keys below them
    """
    ignored = (*ignored, "env", "env_kwargs")
    keys = dict.fromkeys(key for record in records for key in record.settings)
    free = {key for key in keys if key in ignored or key.split(".")[0] in ignored}
    differing = [key for key in keys if key not in free and len({repr(record.value(key)) for record in records}) > 1]
    return sorted(differing, key=lambda key: (key != CORE, key != "params", not key.startswith("core."), key))


def _check_by(records: Sequence[Record], by: Sequence[str] | None) -> None:
    keys = {key for record in records for key in record.settings} - {"env", "env_kwargs", "seed"}
    keys |= {f"env_kwargs.{key}" for record in records for key in record.env_kwargs} | {COMMIT, PARAMETERS, *ALIASES}
    require(by is None or len(by) > 0, "by must name at least one setting, as in by=core", by)
    for key in by or ():
        require(key not in ("seed", "env"), "by must name what makes a method; seeds and worlds are told apart anyway", key)
        if key not in keys:
            raise unknown("setting in by", key, keys)


def _label_keys(worlds: Iterable[Sequence[Record]]) -> list[str]:
    """The fewest settings, added one by one, that tell apart all methods on each world."""
    chosen = [CORE]
    for records in worlds:
        differing = [key for key in differing_keys(records) if key not in SPEED]
        methods: dict[tuple[str, ...], Record] = {}
        for record in records:
            methods.setdefault(tuple(repr(record.value(key)) for key in differing), record)
        different = list(methods.values())
        for index, first in enumerate(different):
            for second in different[:index]:
                if all(first.value(key) == second.value(key) for key in chosen):
                    chosen.append(next(key for key in differing if first.value(key) != second.value(key)))
    return chosen


def _hidden_keys(records: Sequence[Record], keys: Sequence[str]) -> set[tuple[Any, str]]:
    """For each core the settings that all of its runs share, which its label need not name."""
    hidden = set()
    for core in {record.value(CORE) for record in records}:
        of_core = [record for record in records if record.value(CORE) == core]
        hidden |= {(core, key) for key in keys if key != CORE and len({repr(each.value(key)) for each in of_core}) < 2}
    return hidden if CORE in keys else set()


def _label(record: Record, keys: Sequence[str], hidden: set[tuple[Any, str]]) -> str:
    names = [key.removesuffix(".name").rpartition(".")[2] for key in keys]  # algo.name is shown as algo
    parts = []
    for key, name in zip(keys, names, strict=True):
        value = record.value(key)
        if key == CORE:
            parts.append(str(value))
        elif (record.value(CORE), key) not in hidden and value != NOT_SET:
            value = str(value)[:7] if key == COMMIT else shown(value)
            parts.append(f"{name if names.count(name) == 1 else key}={value}")
    return " ".join(parts) or NOT_SET


def _reference(
    name: str, records: Sequence[Record], reference: Callable[[str, dict[str, Any]], Reference], say: Callable[[str], None]
) -> Reference:
    found = {reference(record.env, record.env_kwargs) for record in records}
    if len(found) > 1:
        say(f"{name}: its floor or ceiling differs between the keywords that its runs were trained with: returns as they are")
        return Reference()
    (known,) = found
    return known


def _check_same(
    label: str,
    world: str,
    records: Sequence[Record],
    keys: Sequence[str],
    apart: Iterable[str],
    mix: bool,
    say: Callable[[str], None],
) -> None:
    """Refuse to average runs that differ in more than the seed."""
    differing = [key for key in (*differing_keys(records), COMMIT, PARAMETERS) if key not in (*keys, *SPEED)]
    varied = {key for record in records for key in record.env_kwargs}
    differing += [key for key in (f"env_kwargs.{name}" for name in sorted(varied & set(apart))) if key not in keys]
    for key in differing:
        known = [record.value(key) for record in records if key != PARAMETERS or record.sizes]
        values = sorted({shown(value) for value in known})
        if len(values) < 2:
            continue
        what = f"the runs of '{label}' on {world} differ in {key} ({', '.join(values)})"
        if not mix:
            raise UsageError(
                f"{what}; they are not seeds of one method: by={','.join([*keys, key])} compares them, mix=true averages them"
            )
        say(f"mixed: {what}, and are averaged all the same")
    for key in SPEED:
        values = sorted({shown(record.value(key)) for record in records})
        if len(values) > 1:
            say(f"the runs of '{label}' on {world} differ in {key} ({', '.join(values)}): do not compare their seconds")


def _one_per_seed(label: str, world: str, records: Sequence[Record], say: Callable[[str], None]) -> tuple[Record, ...]:
    """One run for each seed, the newest."""
    seeds: dict[Any, list[Record]] = {}
    for record in records:
        seeds.setdefault(record.value("seed"), []).append(record)
    chosen = []
    for seed, runs in sorted(seeds.items(), key=lambda item: str(item[0]).zfill(20)):
        newest = max(runs, key=lambda record: (record.started, record.path))
        if len(runs) > 1:
            say(f"seed {seed} of '{label}' on {world} was run {len(runs)} times: only the newest counts, {newest.path}")
        chosen.append(newest)
    last, first = min(chosen, key=lambda record: record.steps[-1]), max(chosen, key=lambda record: record.steps[0])
    if first.steps[0] > last.steps[-1]:
        raise UsageError(
            f"the runs of '{label}' on {world} share no step: {last.path} ends at {last.steps[-1]:,.0f} steps, "
            f"{first.path} has its first return at {first.steps[0]:,.0f}"
        )
    return tuple(chosen)
