"""
Which runs were made by the user who reads them: a run's configuration is signed with a secret key of the user.

A run may name a module, as in ``env: my_module:MyEnv-v0``. Reading the run imports the module, so a run of a stranger must not
name one; a run of one's own may. Jupyter knows trusted notebooks in the same way.

The key lies in ``$XDG_STATE_HOME/rmc-rl/key`` or ``~/.local/state/rmc-rl/key``, readable by the user alone. Where it cannot be
written, or on another machine, no run counts as one's own, and reading asks for ``trust=true``.
"""

import hmac
import os
import secrets
from pathlib import Path

_KEY_BYTES = 32


def sign(config: Path) -> None:
    """
    Write the signature of a configuration beside it, if there is or can be a key.

    :param config: the file ``config.yaml`` of a run
    """
    key = _key(make=True)
    if key is not None:
        _signature_path(config).write_text(_signature(key, config))


def is_own(config: Path) -> bool:
    """
    Whether this user has written a configuration, on this machine.

    :param config: the file ``config.yaml`` of a run
    """
    try:
        key = _key(make=False)
        return key is not None and hmac.compare_digest(_signature(key, config), _signature_path(config).read_text())
    except (OSError, ValueError, TypeError):  # no signature, or something else in its place
        return False


def _signature_path(config: Path) -> Path:
    return config.with_name(".signature")


def _signature(key: bytes, config: Path) -> str:
    return hmac.digest(key, config.read_bytes(), "sha256").hex()


def _key(make: bool) -> bytes | None:
    """The user's key; None if there is none and none is made."""
    try:
        state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
        path = Path(state) / "rmc-rl" / "key"
        if make and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh = path.with_name(f"key.{secrets.token_hex(8)}")
            fresh.touch(mode=0o600)
            fresh.write_bytes(secrets.token_bytes(_KEY_BYTES))
            try:
                os.link(fresh, path)  # if another process was first, its key stays
            except FileExistsError:
                pass
            finally:
                fresh.unlink()
        key = path.read_bytes()
    except (OSError, RuntimeError):  # no home, or nothing can be written there
        return None
    return key if len(key) == _KEY_BYTES else None
