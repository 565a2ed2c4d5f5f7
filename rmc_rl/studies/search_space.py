"""
What a tuning study searches: for each key of the configuration a range or a list of values.

A space is written as nested keys. A range is ``[low, high]`` or ``[low, high, scale]``, of whole numbers if both ends are; a
list of values is ``{choices: [...]}``; ``null`` takes a key out of the space.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rmc_rl.errors import UsageError, require, require_choice, require_number

LINEAR, LOG, NEAR_ONE = "linear", "log", "near_one"
SCALES = (LINEAR, LOG, NEAR_ONE)
DIGITS = 4  # significant ones of a number that is drawn
CHOICES = "choices"


class Trial(Protocol):
    """What is needed of Optuna's ``Trial``."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float: ...

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int: ...

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...


@dataclass(frozen=True)
class Parameter:
    """
    One key that is searched.

    :param key: of the configuration, dotted
    :param low: smallest value; of a range
    :param high: largest value
    :param scale: "linear", "log", or "near_one": 1 - value is drawn on a log scale
    :param choices: the values, if it is no range
    """

    key: str
    low: float = 0
    high: float = 0
    scale: str = LINEAR
    choices: tuple[Any, ...] = ()

    @property
    def name(self) -> str:
        """The name under which Optuna stores it: the key or, of scale near_one, "1 - key"."""
        return f"1 - {self.key}" if self.scale == NEAR_ONE else self.key

    @property
    def is_whole(self) -> bool:
        """Whether it is a range of whole numbers."""
        return not self.choices and isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def extremes(self) -> tuple[Any, ...]:
        """The ends of the range, or all values."""
        return self.choices or (self.low, self.high)

    def suggest(self, trial: Trial) -> Any:
        """
        Draw a value, of ``DIGITS`` significant digits.

        :param trial: an Optuna trial
        """
        stored: Any
        if self.choices:
            stored = trial.suggest_categorical(self.name, [_stored(choice) for choice in self.choices])
        elif self.is_whole:
            stored = trial.suggest_int(self.name, int(self.low), int(self.high), log=self.scale == LOG)
        else:
            low, high = (1 - self.high, 1 - self.low) if self.scale == NEAR_ONE else (self.low, self.high)
            stored = trial.suggest_float(self.name, _rounded(low), _rounded(high), log=self.scale != LINEAR)
        return self.value(stored)

    def value(self, stored: Any) -> Any:
        """
        The value of the key.

        :param stored: what Optuna stores
        """
        if self.choices:
            return next(choice for choice in self.choices if _stored(choice) == stored)
        if self.is_whole:
            return int(stored)
        return round(1 - _rounded(stored), 12) if self.scale == NEAR_ONE else _rounded(stored)

    def nearest(self, value: Any) -> Any:
        """
        What Optuna would store for the value in the space that is nearest to another one.

        :param value: of the key
        :return: None if no choice is equal, or the value is no number
        """
        if self.choices:
            return next((_stored(choice) for choice in self.choices if _stored(choice) == _stored(value)), None)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return None
        clipped = min(max(value, self.low), self.high)
        if self.is_whole:
            return round(clipped)
        return _rounded(1 - clipped) if self.scale == NEAR_ONE else clipped

    def describe(self) -> Any:
        """The parameter as a space states it."""
        return {CHOICES: list(self.choices)} if self.choices else [self.low, self.high, self.scale]


def flat_space(node: Mapping[str, Any], where: str, prefix: str = "") -> dict[str, Any]:
    """
    A space with dotted keys.

    :param node: nested keys
    :param where: the space is written, for an error
    :param prefix: of the keys
    :return: key -> range, choices or None
    :raises UsageError: for a value that is none of these
    """
    found: dict[str, Any] = {}
    for key, value in node.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and CHOICES not in value:
            found |= flat_space(value, where, f"{name}.")
        else:
            known = value is None or isinstance(value, list | Mapping)
            require(known, f"{name} in {where} must be [low, high], [low, high, scale] or {{choices: [...]}}", value)
            found[name] = value
    return found


def make_parameter(key: str, entry: Any, where: str) -> Parameter:
    """
    A parameter as a space states it.

    :param key: of the configuration, dotted
    :param entry: ``[low, high]``, ``[low, high, scale]`` or ``{choices: [...]}``
    :param where: the space is written, for an error
    :raises UsageError: for bounds or choices that cannot be searched
    """
    name = f"{key} in {where}"
    if isinstance(entry, Mapping):
        choices = entry[CHOICES] if set(entry) == {CHOICES} else None
        several = isinstance(choices, list) and len({_text(choice) for choice in choices}) == len(choices) >= 2
        require(several, f"{name} must have choices, a list of at least two different values, and no other key", dict(entry))
        return Parameter(key, choices=tuple(choices or ()))
    rule = f"{name} must be [low, high], [low, high, scale] or {{choices: [...]}}"
    require(len(entry) in (2, 3), rule, entry)
    scale = entry[2] if len(entry) == 3 else LINEAR
    require_choice(f"scale of {name}", scale, SCALES)
    low, high = (require_number(f"{end} of {name}", value) for end, value in zip(("low", "high"), entry, strict=False))
    require(low < high, f"low of {name} must be below high", entry)
    if scale == LOG:
        require(low > 0, f"low of {name} must be above 0 on a log scale", low)
    if scale == NEAR_ONE:
        require(high < 1, f"high of {name} must be below 1 on the scale near_one", high)
    if scale != NEAR_ONE and all(isinstance(each, int) for each in entry[:2]):
        return Parameter(key, int(low), int(high), scale)
    return Parameter(key, low, high, scale)


def as_override(value: Any) -> str:
    """
    A value as the command line takes it.

    :param value: None, a truth, number or text, or lists and dictionaries of these
    """
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{as_override(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(as_override, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value) if not isinstance(value, str) or value.replace("_", "").isalnum() else json.dumps(value)


def _stored(choice: Any) -> Any:
    """A choice as Optuna stores it: no lists and dictionaries, which become text."""
    return json.dumps(choice) if isinstance(choice, list | Mapping) else choice


def _text(choice: Any) -> str:
    try:
        return json.dumps(choice)
    except TypeError as error:
        raise UsageError(f"choices must be made of numbers, texts, lists and null, got {choice!r}") from error


def _rounded(number: float) -> float:
    return float(f"{number:.{DIGITS}g}")
