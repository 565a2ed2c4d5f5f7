"""
Recurrent PPO agents with a memory, on the command line: python -m rmc_rl <verb> key=value ...

  train      train an agent; makes a run's folder
  tune       search for good settings of an agent, in a study of many trials
  evaluate   play episodes with a trained agent; prints return and length
  compare    compare runs: tables, pictures and a report
  watch      film an episode: what the agent does, sees and remembers, and why it acts so
  export     write a trained agent to one file that acts without this package: ONNX or pt2
  share      make a folder of a trained agent for the Hugging Face Hub: weights, configuration and a model card

python -m rmc_rl <verb> --help lists the keys of a verb that most people need, --help-all lists all of them.
python -m rmc_rl.<verb> is the same, as are rmc-rl <verb> in an environment with rmc-rl installed and scripts/rmc <verb> in a
checkout.
"""

import importlib
import os
import re
import sys

from rmc_rl.command_line.app import tell
from rmc_rl.command_line.progress import say
from rmc_rl.errors import unknown

VERBS = ("train", "tune", "evaluate", "compare", "watch", "export", "share")


def has_colours() -> bool:
    """Whether the standard output is a terminal that shows colours, and the user wants them (https://no-color.org)."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("NO_COLOR")


def coloured(text: str) -> str:
    """
    The text with its first line bold and the verbs cyan, by the codes of ANSI terminals.

    :param text: the list of verbs
    """
    first, _, rest = text.partition("\n")
    return f"\033[1m{first}\033[0m\n" + re.sub(rf"(?m)^  ({'|'.join(VERBS)})\b", "  \033[36m\\1\033[0m", rest)


def main() -> None:
    """Run the verb that the first argument names."""
    verb = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if verb in ("--help", "-h"):
        say(coloured((__doc__ or "").strip()) if has_colours() else (__doc__ or "").strip())
        return
    if verb not in VERBS:
        sys.exit(tell(unknown("verb", verb, VERBS)))
    del sys.argv[1]
    importlib.import_module(f"rmc_rl.{verb}").main()


if __name__ == "__main__":
    main()
