"""
A verb in a process that does not outlive the one that started it: python -m rmc_rl.command_line.child train ...

The standard input is a pipe from that process. When it closes, because the process has ended in whatever way, the verb gets
SIGTERM: a run ends after the present update, with a checkpoint.
"""

import importlib
import os
import signal
import sys
import threading


def main() -> None:
    """Run the verb that the first argument names."""
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    verb = sys.argv.pop(1)
    sys.argv[0] = f"{verb}.py"
    importlib.import_module(f"rmc_rl.{verb}").main()


def _stop_with_parent() -> None:
    while os.read(0, 1024):  # not sys.stdin, whose lock would be held when the interpreter ends
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
