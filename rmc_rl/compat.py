"""
Interfaces of dependencies that are not public, in one place.

A new version of a dependency may move or remove them. So each one is looked up when it is needed, and each one has a fallback
that keeps the program correct, although it may be slower or less convenient. ``tests/test_compat.py`` tests both.
"""

import importlib
from typing import Any


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
    torch: Any = importlib.import_module("torch")
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
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
    torch: Any = importlib.import_module("torch")
    level = getattr(torch.autograd.forward_ad, "_current_level", None)
    return None if level is None else bool(level >= 0)


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


def forget_hydra() -> None:
    """Undo an initialisation of Hydra that an exception has left behind; does nothing if there is none."""
    try:
        importlib.import_module("hydra.core.global_hydra").GlobalHydra.instance().clear()
    except (ImportError, AttributeError):
        return
