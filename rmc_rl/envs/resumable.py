"""Copies of an environment whose state is pickled, here or in a process of their own, so that a run can be resumed exactly."""

import pickle
from collections.abc import Sequence
from typing import Any

import gymnasium
from gymnasium.utils import EzPickle
from stable_baselines3.common.vec_env import CloudpickleWrapper

from rmc_rl.errors import UsageError, require


def pickled_copies(copies: Sequence[gymnasium.Env[Any, Any]]) -> bytes:
    """
    The state of some copies of an environment.

    :param copies: the copies, with their wrappers
    :raises UsageError: if they do not come back from a pickle as they were
    """
    for copy in copies:
        layer: Any = copy
        while layer is not None:
            # its pickle holds the arguments of the constructor only
            require(not isinstance(layer, EzPickle), "the environment must be saved whole by pickle", type(layer).__name__)
            layer = getattr(layer, "env", None)
    try:
        pickled = pickle.dumps(CloudpickleWrapper(list(copies)))  # wrappers of Gymnasium hold lambdas, which pickle refuses
        pickle.loads(pickled)
    except Exception as error:  # whatever a user's class raises
        raise UsageError(f"{type(copies[0].unwrapped).__name__} cannot be pickled: {_one_line(error)}") from error
    return pickled


def unpickled_copies(pickled: bytes) -> list[gymnasium.Env[Any, Any]]:
    """
    The copies that :func:`pickled_copies` saved. Unpickling executes what the pickle holds.

    :param pickled: the pickle
    :raises UsageError: if it cannot be unpickled
    """
    try:
        copies: list[gymnasium.Env[Any, Any]] = pickle.loads(pickled).var
    except Exception as error:  # whatever a user's class raises
        raise UsageError(f"the environment of the checkpoint cannot be unpickled: {_one_line(error)}") from error
    return copies


class Resumable(gymnasium.Wrapper[Any, Any, Any, Any]):
    """
    An environment in a process of its own, whose state can be taken and put back from another process.

    :param env: the environment
    """

    def take_state(self) -> tuple[bytes | None, str]:
        """The environment, pickled; or None and the reason. An exception would end the process."""
        try:
            return pickled_copies([self.env]), ""
        except UsageError as error:
            return None, str(error)

    def put_state(self, pickled: bytes) -> str:
        """
        Replace the environment.

        :param pickled: what :meth:`take_state` returned
        :return: why it could not be replaced; empty if it was
        """
        try:
            (env,) = unpickled_copies(pickled)
        except (UsageError, ValueError) as error:
            return str(error)
        self.env.close()
        self.env = env
        return ""


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
