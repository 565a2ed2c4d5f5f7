"""Policies of the same size with different cores, so that a comparison is one of cores."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from gymnasium import spaces

from rmc_rl.agents.cores import Core, core_class
from rmc_rl.agents.policies import MlpMemoryPolicy
from rmc_rl.errors import UsageError, require, require_whole

TOLERANCE = 0.02  # of the parameters asked for
LARGEST = 1 << 20  # no size argument is tried beyond


def match_parameters(
    policy: type[MlpMemoryPolicy],
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    policy_kwargs: dict[str, Any],
    params: int,
) -> dict[str, Any]:
    """
    Set the size of a policy's core so that the whole policy has a given number of parameters, within 2 %.

    The core's first size argument (a width, a head size ...) becomes the largest that fits, then a finer one, where the core
    has one, fills the rest. ``core_class(core).size_arguments`` names them; of their values in ``policy_kwargs`` only the
    proportions of a list matter.

    :param policy: the policy's class
    :param observation_space: Observation space, images with their channels first
    :param action_space: Action space
    :param policy_kwargs: the policy's arguments, with ``core`` and perhaps ``core_kwargs``
    :param params: trainable parameters of the policy, features extractor and all
    :return: ``policy_kwargs`` with the sizes in ``core_kwargs``
    :raises UsageError: where no size of the core comes within 2 %, or the core says of no argument that it sets its size
    """
    require_whole("params", params)
    core = core_class(policy_kwargs.get("core", "rmc"))
    require(
        bool(core.size_arguments),
        f"params needs a core that names its size_arguments, {core.__name__} has",
        core.size_arguments,
    )
    kwargs = dict(policy_kwargs.get("core_kwargs") or {})

    def count(**sizes: Any) -> int:
        arguments = policy_kwargs | dict(core_kwargs=kwargs | sizes, ortho_init=False)  # which takes time, and no parameters
        with torch.device("meta"):  # shapes without memory
            built = policy(observation_space, action_space, lambda _: 0.0, **arguments)
        return sum(parameter.numel() for parameter in built.parameters())

    found = count(**kwargs)
    for index, name in enumerate(core.size_arguments):
        make = _scaler(core, kwargs, name)
        if index == 0:
            least = count(**{name: make(1)})
            require(least <= params * (1 + TOLERANCE), f"params must be at least {least:,}, the smallest such policy", params)
        fits = _largest(lambda size, name=name, make=make: count(**{name: make(size)}) <= params)  # type: ignore[misc]
        # the coarse argument stays below, for the finer one to fill; the last one may overshoot, if that is nearer
        sizes = [fits] if index + 1 < len(core.size_arguments) else [fits, fits + 1]
        counts = {size: count(**{name: make(size)}) for size in sizes if size > 0}
        if counts:
            best = min(counts, key=lambda size: abs(counts[size] - params))
            kwargs[name], found = make(best), counts[best]
    if abs(found - params) > TOLERANCE * params:
        raise UsageError(f"params must be within 2 % of what core {core.__name__} can have, near {found:,}, got {params:,}")
    return policy_kwargs | dict(core_kwargs=kwargs)


def _scaler(core: type[Core], kwargs: dict[str, Any], name: str) -> Callable[[int], int | list[int]]:
    """From a size to the value of a size argument: itself, or for a list one in the proportions that it has now."""
    value = kwargs.get(name, inspect.signature(core).parameters[name].default)
    if isinstance(value, list | tuple):
        return lambda size: [max(1, round(size * part / value[0])) for part in value]
    return lambda size: size


def _largest(fits: Callable[[int], bool]) -> int:
    """The largest size that fits, given that all smaller ones do; 0 where 1 does not."""
    low, high = 0, 1
    while high < LARGEST and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
