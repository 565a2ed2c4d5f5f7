"""
Several processes that train one agent, each with copies of the environment of its own (data parallelism).

``torchrun`` starts the processes, :func:`start` joins them into a group, and :class:`~rmc_rl.RecurrentPPO` then computes what
one process with all copies computes. Without a group each function here returns at once what it was given.

Copy ``i`` of process ``r`` is copy ``r * n + i`` of all ``R * n`` copies: it has the seed of that copy, and its actions are
sampled from the same random numbers. The first process draws which sequences a minibatch has, among those of all processes;
each process computes on its own ones. What is a sum over a minibatch in one process is here the sum of the processes' parts.

Equal to one process with the same seed, apart from rounding (sums have another order): gradients, the statistics by which
advantages are normalised, the estimated KL divergence, ``VecNormalize``'s statistics, episode statistics, and what is logged.
It holds if the copies do not depend on each other, as those of Atari and of Gymnasium's environments do not.

Not equal: the episodes of ``rmc_rl/*`` worlds and the disturbances of ``partial``, because one generator draws for all copies
of a process; and environments that draw from NumPy's or Python's global generator.

Shapes: ``R`` processes, ``n`` copies of each process.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from stable_baselines3.common.running_mean_std import RunningMeanStd
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from rmc_rl.errors import UsageError, require

T = TypeVar("T")

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torchrun tells each process
# for the slowest process; then it counts as lost. An evaluation in the first one may take long
LONGEST_WAIT = timedelta(minutes=30)


class LostProcess(OSError):
    """Another process of the group has ended, or cannot be reached."""


class _Group(NamedTuple):
    rank: int
    size: int
    store: Any  # keys and values that all processes see; None: there is no group


_ALONE = _Group(0, 1, None)
_group = _ALONE


def start() -> None:
    """
    Join the group of processes that ``torchrun`` has started; does nothing in a process that it has not started.

    Tensors on the CPU travel by Gloo and those on a GPU by NCCL.

    :raises UsageError: if the environment variables are not those of ``torchrun``, or the processes do not meet
    """
    global _group
    if os.environ.get("WORLD_SIZE", "1") == "1" or size() > 1:
        return
    missing = [name for name in VARIABLES if name not in os.environ]
    require(not missing, f"a group of processes needs the variables {', '.join(VARIABLES)}, as torchrun sets them", missing)
    numbers = {name: os.environ[name] for name in ("RANK", "WORLD_SIZE", "MASTER_PORT")}
    for name, text in numbers.items():
        require(text.isdecimal(), f"the variable {name} must be a whole number, as torchrun sets it", text)
    world_size, own = int(numbers["WORLD_SIZE"]), int(numbers["RANK"])
    require(own < world_size, f"the variable RANK must be below WORLD_SIZE, {world_size}", own)
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank() % torch.cuda.device_count())
    try:
        store, _, _ = next(rendezvous("env://", timeout=LONGEST_WAIT))
        dist.init_process_group(store=store, rank=own, world_size=world_size, timeout=LONGEST_WAIT)
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise UsageError(f"the {world_size} processes must be able to meet at {where}: {_first_line(error)}") from None
    own_keys: Any = dist.PrefixStore("rmc-rl", store)  # type: ignore[attr-defined]  # documented, but not in __all__
    _group = _Group(own, world_size, own_keys)


def stop() -> None:
    """Leave the group, after the work is done; does nothing without one."""
    global _group
    if size() > 1:
        _group = _ALONE
        dist.destroy_process_group()


def rank() -> int:
    """The number of this process, from 0."""
    return _group.rank


def size() -> int:
    """How many processes train together; 1 without a group."""
    return _group.size


def is_first() -> bool:
    """Whether this is the process that writes and prints."""
    return _group.rank == 0


def local_rank() -> int:
    """The number of this process among those of its machine, which decides its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0))


def may_tell() -> bool:
    """Whether nobody in the group has told of an error yet: many processes end by the same one. Call it once for an error."""
    if size() == 1:
        return True
    try:
        return bool(_group.store.add("told", 1) == 1)
    except RuntimeError:  # the machine that kept it is gone
        return True


def share(name: str, count: int) -> int:
    """
    The part of a number that each process takes.

    :param name: what is counted, for the message
    :param count: in all processes
    :raises UsageError: if it cannot be shared equally
    """
    if count % size():
        raise UsageError(f"{name} must be a multiple of {size()}, the number of processes, got {count}")
    return count // size()


# What the processes tell each other. All of them must call the same function at the same place.


def from_first(value: T) -> T:
    """
    What the first process has.

    :param value: anything that can be pickled; only that of the first process counts
    """
    if size() == 1:
        return value
    found = [value]
    with _lost_processes():
        dist.broadcast_object_list(found, src=0)
    return value if is_first() else found[0]


def gather(value: T) -> list[T]:
    """
    What each process has, in the order of their numbers.

    :param value: anything that can be pickled
    """
    if size() == 1:
        return [value]
    found: list[Any] = [None] * size()
    with _lost_processes():
        dist.all_gather_object(found, value)
    return found


def to_first(value: T) -> list[T]:
    """
    What each process has, in the first process; an empty list in the others.

    :param value: anything that can be pickled
    """
    if size() == 1:
        return [value]
    found: list[Any] | None = [None] * size() if is_first() else None
    with _lost_processes():
        dist.gather_object(value, found, dst=0)
    return found or []


def any_of(flag: bool) -> bool:
    """
    Whether a flag is true in any process.

    :param flag: of this process
    """
    return flag if size() == 1 else bool(total(torch.tensor(float(flag))) > 0)


def total(value: Tensor) -> Tensor:
    """
    The sum over all processes.

    :param value: of the same shape in each process
    """
    if size() == 1:
        return value
    added = value.detach().clone()
    with _lost_processes():
        dist.all_reduce(added)
    return added


def rows(array: np.ndarray) -> np.ndarray:
    """
    The rows of all copies, ``(n, ...)`` -> ``(R * n, ...)``.

    :param array: of the same shape and dtype in each process
    """
    if size() == 1:
        return array
    own = torch.from_numpy(np.ascontiguousarray(array))
    found = [torch.empty_like(own) for _ in range(size())]
    with _lost_processes():
        dist.all_gather(found, own)
    return torch.cat(found).numpy()


def copy_from_first(module: nn.Module) -> None:
    """
    Give a module the parameters and buffers that it has in the first process.

    :param module: the same in each process, apart from the values
    """
    if size() == 1:
        return
    with _lost_processes(), torch.no_grad():
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, src=0)


def add_gradients(parameters: Iterable[nn.Parameter], counts: bool = True) -> None:
    """
    Add the gradients of all processes, by one sum.

    A parameter that took no part in the loss of any process keeps None, which an optimizer does not treat like zeros.

    :param parameters: with the gradients of this process's part of the loss
    :param counts: whether that part is one of the minibatch; otherwise its gradients are zero
    """
    if size() == 1:
        return
    parameters = list(parameters)
    present = [counts and parameter.grad is not None for parameter in parameters]
    parts = [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]
    flags = torch.tensor(present, dtype=parts[0].dtype, device=parts[0].device)
    added = total(torch.cat([*(part.flatten() for part in parts), flags]))
    are_present = (added[len(added) - len(parts) :] > 0).tolist()
    begin = 0
    for parameter, part, is_present in zip(parameters, parts, are_present, strict=True):
        # in the memory of before: an optimizer may need the memory format of the parameter
        parameter.grad = part.copy_(added[begin : begin + part.numel()].view(part.shape)) if is_present else None
        begin += part.numel()


def mean_and_std(values: Tensor, counts: bool = True) -> tuple[Tensor, Tensor]:
    """
    Mean and standard deviation (with Bessel's correction) over all processes.

    :param values: of this process, ``(n,)``
    :param counts: whether they count
    """
    if size() == 1:
        return values.mean(), values.std()
    precise = values.double() * counts  # so that the difference of two large sums is exact enough
    count, added, squares = total(torch.stack([torch.full_like(precise, counts).sum(), precise.sum(), precise.square().sum()]))
    variance = (squares - added * added / count).clamp(min=0) / (count - 1)
    return (added / count).to(values.dtype), variance.sqrt().to(values.dtype)


# The rows of this process among those of all copies


def own_rows(count: int) -> slice:
    """
    Where the rows of this process's copies stand among those of all copies.

    :param count: ``n``
    """
    return slice(None) if size() == 1 else slice(rank() * count, (rank() + 1) * count)


def among_all(own: Tensor, filling: float = 0.0) -> Tensor:
    """
    Put the rows of this process where they stand among those of all copies, ``(n, ...)`` -> ``(R * n, ...)``.

    Whoever samples for all rows draws the random numbers that one process with all copies would draw.

    :param own: the rows of this process
    :param filling: the value of all others
    """
    if size() == 1:
        return own
    everything = own.new_full((size() * len(own), *own.shape[1:]), filling)
    everything[own_rows(len(own))] = own
    return everything


class SharedMeanStd(RunningMeanStd):
    """Running moments of what all processes have seen: each update takes the rows of all of them."""

    def update(self, arr: np.ndarray) -> None:
        super().update(rows(arr))


@contextmanager
def _lost_processes() -> Iterator[None]:
    """Explain the error with which a collective operation ends if a process is gone."""
    try:
        yield
    except RuntimeError as error:
        why = _first_line(error)
        raise LostProcess(
            f"one of the {size()} processes that train together has ended or cannot be reached ({why})"
        ) from None


def _first_line(error: Exception) -> str:
    return " ".join(str(error).strip().partition("\n")[0].split())
