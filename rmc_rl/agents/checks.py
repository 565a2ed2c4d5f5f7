"""
What is checked of recurrent PPO, ours and sb3-contrib's: its settings before training, and that its numbers stay finite.

Shapes: ``T`` steps of a rollout, ``N`` environments.
"""

import copy
from typing import Any, NoReturn

import sb3_contrib
import torch
from torch import Tensor

from rmc_rl.agents import parallel
from rmc_rl.errors import NonFiniteError, require_number, require_truth, require_whole

# limits, and what they must be; infinity means that there is none
_LIMITS = {
    "max_grad_norm": dict(above=0),
    "clip_range": dict(above=0),
    "clip_range_vf": dict(above=0),
    "target_kl": dict(at_least=0),
}
_OPTIONAL = ("clip_range_vf", "target_kl")

Weights = tuple[dict[str, Any], dict[str, Any]]  # parameters of a policy, and the state of its optimizer


def check_settings(model: sb3_contrib.RecurrentPPO) -> None:
    """
    Check the arguments of an algorithm, from its attributes as they are now.

    :param model: the algorithm; ``sequence_length`` and ``use_masking`` are checked if it has them
    :raises UsageError: for the first one that makes no sense
    """
    require_whole("n_steps", model.n_steps)
    require_whole("n_epochs", model.n_epochs)
    for name in ("batch_size", "sequence_length"):
        if getattr(model, name, None) is not None:
            require_whole(name, getattr(model, name))
    for name in ("gamma", "gae_lambda"):
        require_number(name, getattr(model, name), at_least=0, at_most=1)
    require_number("vf_coef", model.vf_coef)
    if not callable(model.ent_coef):
        require_number("ent_coef", model.ent_coef)
    if not callable(model.learning_rate):
        require_number("learning_rate", model.learning_rate, at_least=0)
    for name, bounds in _LIMITS.items():
        value = getattr(model, name)
        if not callable(value) and value != float("inf") and not (value is None and name in _OPTIONAL):
            require_number(name, value, **bounds)
    require_whole("sde_sample_freq", model.sde_sample_freq, at_least=-1)
    require_truth("normalize_advantage", model.normalize_advantage)
    if getattr(model, "use_masking", None) is not None:
        require_truth("use_masking", getattr(model, "use_masking"))  # noqa: B009  # sb3-contrib's class has none


def check_rollout(
    model: sb3_contrib.RecurrentPPO, observations: Any, parts: dict[str, Tensor], steps: int, error: Exception | None = None
) -> None:
    """
    Check that a rollout has only finite numbers.

    :param model: the algorithm, which has played it
    :param observations: ``(T, N, *observation_shape)``, or a dictionary of such tensors
    :param parts: what else was stored, ``(T, N)`` each, by name
    :param steps: steps that were stored
    :param error: what the policy raised at the next step, whose observation is stored, if it did
    :raises NonFiniteError: for the first number that is not finite, in time
    """
    named = observations if isinstance(observations, dict) else {"": observations}
    stored = [(f"observation {name}".strip(), part[: steps + (error is not None)]) for name, part in named.items()]
    stored += [(name, part[:steps]) for name, part in parts.items()]
    found: list[tuple[int, int, str, float]] = []
    for name, tensor in stored:
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            where = torch.nonzero(~torch.isfinite(tensor))[0].tolist()  # the first in time
            found.append((where[0], where[1], name, tensor[tuple(where)].item()))
    if found:
        time, env, name, value = min(found, key=lambda each: each[0])
        step = model.num_timesteps - (steps - time) * model.n_envs * parallel.size()
        env += parallel.rank() * model.n_envs
        place = f"environment {env} after {step:,} steps (step {time} of the rollout)"
        raise NonFiniteError(f"the {name} of {place} was {value}: training stopped") from error
    if error is not None:
        for name, parameter in model.policy.named_parameters():
            if not torch.isfinite(parameter).all():
                raise NonFiniteError(f"parameter {name} of the policy is not finite: training stopped") from error


def weights_of(model: sb3_contrib.RecurrentPPO) -> Weights:
    """
    A copy of what an update changes.

    :param model: the algorithm
    """
    return copy.deepcopy((model.policy.state_dict(), model.policy.optimizer.state_dict()))


def undo_update(model: sb3_contrib.RecurrentPPO, before: Weights, what: str) -> NoReturn:
    """
    Give an algorithm the weights that it had before an update, and say why.

    :param model: the algorithm
    :param before: what :func:`weights_of` returned
    :param what: what was not finite
    :raises NonFiniteError: always
    """
    parameters, optimizer = before
    model.policy.load_state_dict(parameters)
    model.policy.optimizer.load_state_dict(optimizer)
    raise NonFiniteError(
        f"{what} after {model.num_timesteps:,} steps; training stopped, and the policy is that before the update "
        f"(a smaller learning_rate or max_grad_norm may help)"
    )
