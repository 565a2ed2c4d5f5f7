"""
The table of cores in docs/memories.md: python scripts/cores.py

It has a row for each registered core with its default arguments: the paper that its class or module names, the size of its
state, its number of parameters when it reads FEATURES features, and the names of the tensors that `inspect` shows.
"""

import inspect
import re

import torch

from rmc_rl.agents.cores import Core, core_names, make_core

FEATURES = 64
PAPER = re.compile(r'Paper: (?P<authors>.+?), "(?P<title>.+?)", (?P<year>\d{4}), (?P<url>https?://\S+?)(?=[,;]?\s|\.\s)')


def paper(core: Core) -> str:
    """A link to the paper that a core's class or module names; without a paper, the first line of the module."""
    of_class, of_module = (
        " ".join((inspect.getdoc(each) or "").split()) for each in (type(core), inspect.getmodule(type(core)))
    )
    found = PAPER.search(of_class + " ") or PAPER.search(of_module + " ")
    if found is None:
        return of_module.split(":")[0].split(".")[0].strip()
    return f"[{found['authors']} {found['year']}]({found['url']})"


def shown(core: Core) -> list[str]:
    """Names of the tensors that a core shows, without the numbers of layers."""
    looks = core.inspect(torch.randn(2, 1, core.input_size), core.initial_state(1))
    names = (re.sub(r"_\d+$", "", name) for name in looks if name not in ("output", "state"))
    return [f"`{name}`" for name in dict.fromkeys(names)]


def table() -> list[str]:
    """The lines of the table, in Markdown."""
    lines = [f"| core | paper | state | parameters ({FEATURES} features) | shows |", "| --- | --- | --- | --- | --- |"]
    for name in core_names():
        core = make_core(name, FEATURES)
        count = sum(parameter.numel() for parameter in core.parameters())
        lines.append(f"| `{name}` | {paper(core)} | {core.state_size:,} | {count:,} | {', '.join(shown(core)) or 'nothing'} |")
    return lines


if __name__ == "__main__":
    print("\n".join(table()))
