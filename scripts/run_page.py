"""
Run the command lines of a page in the present folder: scripts/run_page docs/study.md [--replace old=new ...]

Runs each line of the page's Bash blocks that begins with ``scripts/``, one after the other, with the scripts of this checkout.
Stops at the first that fails. Prints how long each took.
"""

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def command_lines(page: str) -> list[str]:
    """
    The command lines of a page.

    :param page: its text, in Markdown
    """
    blocks = re.findall(r"^```bash\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    return re.findall(r"^scripts/.*", "\n".join(blocks), re.MULTILINE)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path, help="a Markdown file")
    parser.add_argument("--replace", nargs="*", default=[], metavar="OLD=NEW", help="words of the commands: 100000=512")
    arguments = parser.parse_args()
    times: list[tuple[str, float]] = []
    for line in command_lines(arguments.page.read_text()):
        for change in arguments.replace:
            old, _, new = change.partition("=")
            line = re.sub(rf"\b{re.escape(old)}\b", new, line)
        print(f"$ {line}", flush=True)
        started = time.monotonic()
        done = subprocess.run(["bash", "-c", f"{ROOT}/{line}"], check=False)
        times.append((line, time.monotonic() - started))
        if done.returncode:
            sys.exit(f"error: status {done.returncode} from: {line}")
    print("\n".join(f"{seconds:6.0f} s  {line}" for line, seconds in times))
    print(f"{sum(seconds for _, seconds in times):6.0f} s  in all")


if __name__ == "__main__":
    main()
