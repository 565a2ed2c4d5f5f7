"""Policies of the same size with different cores, so that a comparison is one of cores."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from gymnasium import spaces

from rmc_rl.agents.cores import core_class
from rmc_rl.agents.policies import MlpMemoryPolicy
from rmc_rl.errors import UsageError, require, require_choice, require_whole

TOLERANCE = 0.02  # of the parameters asked for
LARGEST = 1 << 20  # no size argument is tried beyond
MOST = 10**10  # parameters
PARAMS_OF = ("policy", "core")


def match_parameters(
    policy: type[MlpMemoryPolicy],
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    policy_kwargs: dict[str, Any],
    params: int,
    of: str = "policy",
) -> dict[str, Any]:
    """
    Set the size of a policy's core so that the whole policy, or the core alone, has a given number of parameters, within 2 %.

    The core's first size argument (a width, a head size ...) becomes the largest that fits, then a finer one, where the core
    has one, fills the rest. ``core_class(core).size_arguments`` names them. Of their values in ``policy_kwargs`` the
    proportions of a list stay, as far as whole numbers allow; else they do not matter. Policies are built on torch's "meta"
    device to be counted, so a core's constructor must not read numbers off its tensors.

    :param policy: the policy's class
    :param observation_space: Observation space, images with their channels first
    :param action_space: Action space
    :param policy_kwargs: the policy's arguments, with ``core`` and perhaps ``core_kwargs``
    :param params: how many parameters
    :param of: whose they are: "policy", features extractor and heads included, or "core", the one that the actor reads
    :return: ``policy_kwargs`` with the sizes in ``core_kwargs``
    :raises UsageError: where no size of the core comes within 2 %, or the core says of no argument that it sets its size
    """
    require_whole("params", params)
    require_choice("params_of", of, PARAMS_OF)
    require(params <= MOST, f"params must be at most {MOST:,}", params)
    core = core_class(policy_kwargs.get("core", "rmc"))
    known, names = inspect.signature(core).parameters, core.size_arguments
    rule = f"params needs size_arguments in core {core.__name__}, a tuple of its constructor's arguments"
    require(isinstance(names, tuple) and len(names) > 0 and set(names) <= set(known), rule, names)
    kwargs = dict(policy_kwargs.get("core_kwargs") or {})
    values = {name: kwargs.pop(name, known[name].default) for name in names}
    kwargs |= {name: value for name, value in values.items() if isinstance(value, list | tuple)}

    def count(**sizes: Any) -> int:
        arguments = policy_kwargs | dict(core_kwargs=kwargs | sizes, ortho_init=False)  # which takes time, and no parameters
        try:
            with torch.device("meta"):  # shapes without memory
                built = policy(observation_space, action_space, lambda _: 0.0, **arguments)
        except (TypeError, ValueError, RuntimeError) as error:
            if isinstance(error, UsageError):
                raise
            raise UsageError(f"params needs a core that can be built with {sizes} on torch's meta device: {error}") from error
        return sum(parameter.numel() for parameter in (built.core if of == "core" else built).parameters())

    least = count(**{name: _scaled(value, 1) for name, value in values.items()})
    require(least <= params * (1 + TOLERANCE), f"params must be at least {least:,}, the smallest such {of}", params)
    found = least
    for index, (name, value) in enumerate(values.items()):
        total = _total(count, name, value)
        fits = max(1, _largest(total, params))
        # the coarse argument stays below, for the finer one to fill; the last one may overshoot, if that is nearer
        sizes = [fits] if index + 1 < len(names) else [fits, fits + 1]
        counts = {size: total(size) for size in sizes}
        best = min(counts, key=lambda size: abs(counts[size] - params))
        kwargs[name], found = _scaled(value, best), counts[best]
    if abs(found - params) > TOLERANCE * params:
        rule = f"params must be within 2 % of a size that core {core.__name__} can have, nearest {found:,}"
        raise UsageError(f"{rule}, got {params:,}")
    return policy_kwargs | dict(core_kwargs=kwargs)


def _scaled(value: Any, size: int) -> int | list[int]:
    """A size as the value of an argument: itself, or where the argument is a list, one in the same proportions."""
    return [max(1, round(size * part / value[0])) for part in value] if isinstance(value, list | tuple) else size


def _total(count: Callable[..., int], name: str, value: Any) -> Callable[[int], int]:
    """From the size of one argument to the parameters of the policy."""
    return lambda size: count(**{name: _scaled(value, size)})


def _largest(total: Callable[[int], int], params: int) -> int:
    """The largest size whose total is at most ``params``; 0 where that of 1 is not."""
    low, high = 0, 1
    while high < LARGEST and total(high) <= params:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if total(middle) <= params else (low, middle)
    return low
