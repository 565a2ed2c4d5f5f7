"""What a user is told about a mistake: one line with the rule, the value received and the nearest valid name."""

import difflib
import importlib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

LONGEST_VALUE = 300  # characters of a value in a message


class UsageError(ValueError):
    """
    A mistake of the caller. The command line prints its one line and exits with status 2.

    :param message: made one line
    """

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


class NonFiniteError(FloatingPointError):
    """A number that is not finite stopped training. The message says where it was found first."""


def unknown(kind: str, name: object, valid: Iterable[str]) -> UsageError:
    """
    The error for a name that is not in a known set.

    :param kind: what the name should have been, for example ``"core"``
    :param name: the name received
    :param valid: every name that would have been accepted
    :return: the error, which names the nearest valid name, or all of them where none is near
    """
    names = sorted(valid)
    by_lower_case = {candidate.lower(): candidate for candidate in names}
    near = difflib.get_close_matches(str(name).lower(), by_lower_case, n=1, cutoff=0.6)
    if near:
        hint = f"did you mean '{by_lower_case[near[0]]}'?"
    elif len(names) <= 30:
        hint = "valid: " + (", ".join(names) or "none")
    else:
        hint = f"none of the {len(names)} valid names is near"
    return UsageError(f"unknown {kind} '{name}'; {hint}")


def require(condition: bool, rule: str, value: object) -> None:
    """
    Check an argument.

    :param condition: whether the argument keeps the rule
    :param rule: the rule, as in ``"num_slots must be at least 1"``
    :param value: the value received
    :raises UsageError: where the condition is false
    """
    if not condition:
        shown = repr(value)
        raise UsageError(f"{rule}, got {shown if len(shown) <= LONGEST_VALUE else shown[:LONGEST_VALUE] + ' ...'}")


def require_whole(name: str, value: object, at_least: int = 1) -> int:
    """
    Check that a size is a whole number.

    :param name: the argument's name
    :param value: the value received
    :param at_least: the smallest valid value
    :return: the value as Python's int, because not all of torch accepts NumPy's integers
    :raises UsageError: where it is not
    """
    valid = isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= at_least)
    require(valid, f"{name} must be a whole number of at least {at_least}", value)
    return int(value)  # type: ignore[call-overload, no-any-return]


def require_number(
    name: str,
    value: object,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
) -> float:
    """
    Check that an argument is a finite number: an integer or a float, not a bool and not NaN.

    :param name: the argument's name
    :param value: the value received
    :param at_least: the smallest valid value; None: there is none
    :param above: a bound that is not valid itself
    :param at_most: the largest valid value
    :param below: a bound that is not valid itself
    :return: the value as Python's float
    :raises UsageError: where it is not
    """
    bounds = {"at least": at_least, "above": above, "at most": at_most, "below": below}
    rule = " and ".join(f"{words} {bound:g}" for words, bound in bounds.items() if bound is not None)
    valid = (
        isinstance(value, int | float | np.integer | np.floating)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and (at_least is None or value >= at_least)
        and (above is None or value > above)
        and (at_most is None or value <= at_most)
        and (below is None or value < below)
    )
    require(bool(valid), f"{name} must be a finite number {rule}".rstrip(), value)
    return float(value)  # type: ignore[arg-type]


def require_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """
    Check that an argument is one of a few words.

    :param name: the argument's name
    :param value: the value received
    :param choices: the valid words
    :raises UsageError: where it is not, with the nearest word
    """
    choices = list(choices)
    if value not in choices:
        raise unknown(name, value, choices)


def require_truth(name: str, value: object) -> None:
    """
    Check that an argument is true or false.

    :param name: the argument's name
    :param value: the value received
    :raises UsageError: where it is not
    """
    require(isinstance(value, bool | np.bool_), f"{name} must be true or false", value)


def check_keywords(kind: str, function: Callable[..., Any], keywords: Mapping[str, Any], given: Iterable[str] = ()) -> None:
    """
    Check that a function accepts the keywords it is about to be called with.

    :param kind: what the keywords are called where the user writes them, for example ``"core argument"``
    :param function: the function or class that will be called
    :param keywords: the keywords the user gave
    :param given: names of parameters that the caller fills in itself, so that a user may not
    :raises UsageError: for a keyword that the function does not have, with the nearest one it has
    """
    # a class whose ** goes to the next one takes the keywords of both
    classes = function.__mro__ if isinstance(function, type) else ()
    functions = [vars(cls)["__init__"] for cls in classes if "__init__" in vars(cls)] or [function]
    valid: list[str] = []
    for each in functions:
        parameters = inspect.signature(each).parameters.values()
        valid += [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name != "self"]
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    else:
        return
    valid = [name for name in valid if name not in set(given)]
    for name in keywords:
        if name not in valid:
            raise unknown(kind, name, valid)


def require_packages(what: str, packages: Iterable[str], extra: str) -> None:
    """
    Check that optional packages can be imported.

    :param what: what needs them, as in "compare"
    :param packages: the modules
    :param extra: of rmc-rl, which installs them
    :raises UsageError: if one is missing, with the command that installs it
    """
    missing = []
    for name in packages:
        try:
            importlib.import_module(name)
        except ImportError:
            missing.append(name)
    if missing:
        command = f"pip install 'rmc-rl[{extra}]' (pip install '.[{extra}]' in a checkout)"
        raise UsageError(f"{what} needs {' and '.join(missing)}: {command}")
