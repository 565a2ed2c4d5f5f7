"""
Interfaces of dependencies that are not public, in one place.

A new version of a dependency may move or remove them. So each one is looked up when it is needed, and each one has a fallback
that keeps the program correct, although it may be slower or less convenient. ``tests/test_compat.py`` tests both.
"""

import contextlib
import functools
import importlib
from collections.abc import Iterator
from typing import Any, TypeVar

F = TypeVar("F", bound=Any)


def cpu_has_bfloat16() -> bool:
    """Whether this processor has instructions for bfloat16, as far as torch can tell; True if it cannot tell."""
    torch: Any = importlib.import_module("torch")
    try:  # torch 2.9 and newer
        capabilities = torch.cpu.get_capabilities()
    except AttributeError:
        try:
            return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
        except (AttributeError, RuntimeError):
            return True
    if capabilities.get("architecture") != "x86_64":
        return True
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def wrap_env(algorithm: Any, env: Any, verbose: int = 0) -> Any:
    """
    An environment as SB3's algorithms train in it: vectorised, with the channels of images first.

    :param algorithm: a class of SB3
    :param env: an environment, vectorised or not
    :param verbose: whether SB3 says what it wraps
    """
    try:
        return algorithm._wrap_env(env, verbose)
    except AttributeError:
        vec_env = importlib.import_module("stable_baselines3.common.vec_env")
        space_of = importlib.import_module("stable_baselines3.common.preprocessing")
        if not isinstance(env, vec_env.VecEnv):
            env = vec_env.DummyVecEnv([lambda single=env: single])
        spaces = getattr(env.observation_space, "spaces", None)
        parts = spaces.values() if isinstance(spaces, dict) else [env.observation_space]
        last = [space_of.is_image_space(part) and not space_of.is_image_space_channels_first(part) for part in parts]
        return vec_env.VecTransposeImage(env) if any(last) else env


def torch_is_watching() -> bool:
    """
    Whether torch records or transforms the operations that run now, so that a kernel in C++ would escape its attention: the
    compiler, a tracer, a dispatch mode, a function transform, or forward-mode differentiation.

    :return: also True if this version of torch does not say
    """
    import torch  # a statement, which torch.compile can trace

    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore
        return True
    try:
        return (
            torch.utils._python_dispatch._get_current_dispatch_mode() is not None
            or torch._C._functorch.peek_interpreter_stack() is not None
            or forward_mode_is_active() is not False
        )
    except (AttributeError, TypeError):
        return True


def forward_mode_is_active() -> bool | None:
    """
    Whether forward-mode differentiation is active: ``torch.autograd.forward_ad.dual_level`` or ``torch.func.jvp``.

    :return: None if this version of torch does not say
    """
    import torch  # a statement, which torch.compile can trace

    level = getattr(torch.autograd.forward_ad, "_current_level", None)
    return None if level is None else bool(level >= 0)


def constant_for_compiler(function: F) -> F:
    """
    Decorator: torch.compile calls the function once and takes its result as a constant.

    It is ``torch.compiler.assume_constant_result`` without the import of the compiler, which takes seconds. If a version of
    torch does not know the mark, it traces the function.

    :param function: the function
    """
    function._dynamo_marked_constant = True
    return function


def hydra_arguments() -> Any:
    """
    Hydra's own parser of the command line's flags.

    :return: an ``argparse.ArgumentParser``; None if Hydra no longer has it there
    """
    try:
        return importlib.import_module("hydra._internal.utils").get_args_parser()
    except (ImportError, AttributeError):
        return None


def hydra_overrides_parser() -> Any:
    """
    Hydra's parser of ``key=value``, with the YAML files of the Hydra that is initialised, which ``glob(...)`` needs.

    :return: an object with ``parse_overrides(lines)``; None if Hydra no longer has it there
    """
    try:
        parser = importlib.import_module("hydra.core.override_parser.overrides_parser").OverridesParser
        hydra = importlib.import_module("hydra.core.global_hydra").GlobalHydra.instance()
        return parser.create(config_loader=hydra.config_loader())
    except (ImportError, AttributeError, TypeError):
        return None


def hydra_launchers() -> list[str]:
    """The launchers that the Hydra that is initialised knows; empty if it no longer says so."""
    try:
        hydra = importlib.import_module("hydra.core.global_hydra").GlobalHydra.instance()
        return list(hydra.config_loader().get_group_options("hydra/launcher"))
    except (ImportError, AttributeError, TypeError):
        return []


def forget_hydra() -> None:
    """Undo an initialisation of Hydra that an exception has left behind; does nothing if there is none."""
    try:
        importlib.import_module("hydra.core.global_hydra").GlobalHydra.instance().clear()
    except (ImportError, AttributeError):
        return


# attributes of SB3's on-policy algorithms that count steps, updates and the position in a schedule
_COUNTERS = (
    "num_timesteps",
    "_total_timesteps",
    "_num_timesteps_at_start",
    "_n_updates",
    "_episode_num",
    "_current_progress_remaining",
)


def algorithm_state(algorithm: Any) -> dict[str, Any]:
    """
    What an on-policy algorithm of SB3 carries from one rollout to the next, without policy, optimizer and environment.

    :param algorithm: the algorithm, between two rollouts
    :return: ``counters`` by name; ``observations`` and ``episode_starts`` of the next step; ``core_states`` of actor and
        critic (of the actor if they are the same, None if the policy is not recurrent); ``episodes`` and ``successes`` of the
        statistics
    """
    states = getattr(algorithm, "_last_lstm_states", None)
    if states is not None:
        states = list(states[:1] if states[0] is states[1] else states)
    return {
        "counters": {name: getattr(algorithm, name) for name in _COUNTERS if hasattr(algorithm, name)},
        "observations": algorithm._last_obs,
        "episode_starts": algorithm._last_episode_starts,
        "core_states": states,
        "episodes": list(algorithm.ep_info_buffer or ()),
        "successes": list(algorithm.ep_success_buffer or ()),
    }


def set_algorithm_state(algorithm: Any, state: dict[str, Any], observations: Any = None) -> None:
    """
    Put back what :func:`algorithm_state` returned.

    :param algorithm: an algorithm with the same settings
    :param state: the state
    :param observations: the first observations of new episodes, if the environment had to start them again; None: it goes on
    """
    torch: Any = importlib.import_module("torch")
    collections: Any = importlib.import_module("collections")
    numpy: Any = importlib.import_module("numpy")

    def on_device(value: Any) -> Any:
        return value.to(algorithm.device) if isinstance(value, torch.Tensor) else value

    for name, value in state["counters"].items():
        setattr(algorithm, name, value)
    if observations is None:
        algorithm._last_obs, algorithm._last_episode_starts = map(on_device, (state["observations"], state["episode_starts"]))
    else:
        algorithm._last_obs, algorithm._last_episode_starts = observations, numpy.ones(algorithm.n_envs, dtype=bool)
    if state["core_states"] is not None:
        pairs = [tuple(map(on_device, pair)) for pair in state["core_states"]]
        algorithm._last_lstm_states = type(algorithm._last_lstm_states)(pairs[0], pairs[-1])
    window = algorithm._stats_window_size
    algorithm.ep_info_buffer = collections.deque(state["episodes"], maxlen=window)
    algorithm.ep_success_buffer = collections.deque(state["successes"], maxlen=window)


def purge_events(writer: Any, step: int) -> None:
    """
    Make TensorBoard drop the events of earlier files from a step on. If the interface is gone, it shows them too.

    :param writer: a ``SummaryWriter`` in the same folder
    :param step: the first step that is dropped
    """
    try:
        events = importlib.import_module("tensorboard.compat.proto.event_pb2")
        start = events.SessionLog(status=events.SessionLog.START)
        writer.file_writer.add_event(events.Event(step=step, session_log=start))
    except (ImportError, AttributeError):
        return


@contextlib.contextmanager
def unchecked_distributions() -> Iterator[None]:
    """Let torch's distributions be made without a look at their parameters, which have no values on the "meta" device."""
    distribution: Any = importlib.import_module("torch.distributions").Distribution
    before = getattr(distribution, "_validate_args", __debug__)  # torch's own default
    distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        distribution.set_default_validate_args(before)


def remember_onnx_operators() -> None:
    """
    Let ``torch.onnx`` keep its table of operators, which it otherwise reads anew for each file: half of its time.

    Does nothing if this version of torch has no such table.
    """
    try:
        apis = importlib.import_module("torch.onnx._internal.exporter._registration").onnxscript_apis
        if not hasattr(apis.get_torchlib_ops, "cache_info"):
            apis.get_torchlib_ops = functools.cache(apis.get_torchlib_ops)
    except (ImportError, AttributeError):
        return
