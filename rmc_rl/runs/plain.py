"""
Values as plain data: what ``torch.save`` writes and ``torch.load(weights_only=True)`` reads without executing anything.

Plain data are tensors, numbers, text, None, and lists, tuples and dictionaries of these. NumPy arrays and scalars, which
``weights_only`` refuses, become dictionaries that hold their bytes, so that they come back bit for bit and with their type.
"""

from typing import Any

import numpy as np
import torch

from rmc_rl.errors import UsageError, require

_NUMPY = "__numpy__"  # the key that marks the dictionary of an array


def to_plain(value: Any) -> Any:
    """
    Copy a value into plain data on the CPU.

    :param value: any nesting of lists, tuples, dictionaries, tensors, arrays, numbers and text
    :raises UsageError: for a value of another type
    """
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        require(array.dtype.kind in "biufcSU", "an array must hold numbers or text", array.dtype)
        data = torch.from_numpy(np.frombuffer(array.tobytes(), dtype=np.uint8).copy())
        is_scalar = isinstance(value, np.generic)
        return {_NUMPY: array.dtype.str, "shape": list(array.shape), "is_scalar": is_scalar, "bytes": data}
    if isinstance(value, dict):
        return {to_plain(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, tuple):  # a named one as well
        return tuple(map(to_plain, value))
    if isinstance(value, list):
        return list(map(to_plain, value))
    require(value is None or isinstance(value, bool | int | float | str), "a value must be plain data", type(value).__name__)
    return value


def from_plain(value: Any) -> Any:
    """
    The inverse of :func:`to_plain`; named tuples come back as tuples.

    :param value: plain data
    :raises UsageError: for an array whose bytes do not fit its type and shape
    """
    if isinstance(value, dict) and _NUMPY in value:
        try:
            flat = np.frombuffer(value["bytes"].numpy().tobytes(), dtype=np.dtype(value[_NUMPY]))
            array = flat.reshape(value["shape"]).copy()
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(f"an array must be whole, got one that is not: {error}") from None
        return array[()] if value["is_scalar"] else array
    if isinstance(value, dict):
        return {key: from_plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(map(from_plain, value))
    return value
