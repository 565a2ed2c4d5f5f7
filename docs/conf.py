"""
The site: scripts/docs builds it from the pages in this folder, the docstrings and the README.

Pages of memories and worlds are made here from their docstrings, so that nothing is said twice.
"""

import inspect
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT / "scripts"))

import benchmark_peers  # noqa: E402  # from scripts/
import contact_sheet  # noqa: E402  # from scripts/
import cores  # noqa: E402  # from scripts/
from docutils import nodes  # noqa: E402
from latex2mathml.converter import convert  # noqa: E402
from sphinx.application import Sphinx  # noqa: E402
from sphinx.writers.html5 import HTML5Translator  # noqa: E402

import rmc_rl  # noqa: E402
from rmc_rl.agents.cores import core_class, core_names, make_core  # noqa: E402
from rmc_rl.envs.base import load_world  # noqa: E402
from rmc_rl.envs.registration import WORLDS  # noqa: E402

project = "rmc-rl"
author = copyright = "the rmc-rl authors"
release = version = rmc_rl.__version__

extensions = [
    *("sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx.ext.intersphinx"),
    *("sphinx_copybutton", "myst_parser"),
]
html_math_renderer = "mathml"
exclude_patterns = ["_build", "_generated/README.md", "_generated/peers.md"]
myst_enable_extensions = ["colon_fence", "dollarmath", "deflist"]
myst_heading_anchors = 3
# the sections of a world's docstring
napoleon_custom_sections = [
    *("Description", "Action Space", "Observation Encoding", "Rewards", "Termination", "Memory demand", "Answers"),
    "Registered Configurations",
]
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_preserve_defaults = True
intersphinx_mapping: dict[str, Any] = {}  # the build needs no network

html_theme = "furo"
html_title = "rmc-rl"
html_static_path = ["_static"]
html_css_files = ["site.css"]


def core_page(name: str) -> str:
    """The page of a memory, in Markdown."""
    cls = core_class(name)
    core = make_core(name, cores.FEATURES)
    parameters = sum(parameter.numel() for parameter in core.parameters())
    looks = ", ".join(cores.shown(core)) or "nothing"
    return f"""# {name}

```{{eval-rst}}
.. automodule:: {cls.__module__}
   :no-members:
   :no-index:
```

| numbers carried from step to step | parameters, reading {cores.FEATURES} features | `inspect` shows |
| --- | --- | --- |
| {core.state_size:,} | {parameters:,} | {looks} |

`core={name}` on the command line; `core.<argument>=<value>` sets an argument. The defaults:

```{{literalinclude}} /../rmc_rl/configs/core/{name}.yaml
:language: yaml
```

```{{eval-rst}}
.. autoclass:: {cls.__module__}.{cls.__qualname__}
   :no-members:
```
"""


def world_page(world_id: str, picture: str) -> str:
    """The page of a world, in Markdown."""
    cls = load_world(WORLDS[world_id])
    world = cls()
    returns, demand = world.returns(), world.memory_demand()
    players = {"perfect": returns.perfect, "without memory": returns.memoryless, "random": returns.random}
    numbers = " | ".join("not known" if value is None else f"{value:.3g}" for value in players.values())
    return f"""# {world_id.removeprefix("rmc_rl/").split("-")[0]}

```{{image}} {picture}
:alt: a few frames of one random episode of {world_id}
```

`env={world_id}` on the command line; `env_kwargs.<keyword>=<value>` sets a keyword. With the default keywords, these are
the mean returns, and the largest number of steps between seeing a fact and using it:

| {" | ".join(players)} | steps to remember |
| --- | --- | --- | --- |
| {numbers} | {"not known" if demand is None else demand} |

```{{eval-rst}}
.. automodule:: {cls.__module__}
   :no-members:

.. autoclass:: {cls.__module__}.{cls.__qualname__}
   :no-members:
```
"""


def keys_page() -> str:
    """All keys of the command line, as ``--help-all`` prints them."""
    parts = ["# All keys", "Each file as it is in the package. Later files win, and the command line wins over all of them."]
    folder = ROOT / "rmc_rl" / "configs"
    groups = ("family", "family_core", "algo", "tune")
    for path in [
        *sorted(folder.glob("*.yaml")),
        *(each for group in groups for each in sorted((folder / group).rglob("*.yaml"))),
    ]:
        name = path.relative_to(folder).as_posix()
        parts.append(f"## {name}\n\n```{{literalinclude}} /../rmc_rl/configs/{name}\n:language: yaml\n```")
    return "\n\n".join(parts) + "\n"


def write(path: Path, text: str) -> None:
    """Write a page, unless it is there already: Sphinx reads again what changed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def generate(_app: Sphinx) -> None:
    """Make the pages of memories, worlds and keys, and the table of the peers."""
    made = HERE / "_generated"
    for name in core_names():
        write(made / "memories" / f"{name}.md", core_page(name))
    for world_id in WORLDS:
        name = world_id.removeprefix("rmc_rl/").split("-")[0]
        picture = made / "worlds" / f"{name}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        if not picture.exists():
            contact_sheet.strip(world_id, title=False).save(picture, optimize=True)
        write(made / "worlds" / f"{name}.md", world_page(world_id, picture.name))
    write(made / "keys.md", keys_page())
    write(made / "peers.md", benchmark_peers.page(HERE / "peers"))


def clean_docstring(_app: Sphinx, what: str, _name: str, obj: object, _options: object, lines: list[str]) -> None:
    """A module's first line is its subject: it stands alone, in front of its sources."""
    if what == "module" and inspect.ismodule(obj) and len(lines) > 1 and lines[1]:
        lines.insert(1, "")


def inline_math(translator: HTML5Translator, node: nodes.math) -> None:
    """A formula in a line, as MathML, which browsers draw without a script from elsewhere."""
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def displayed_math(translator: HTML5Translator, node: nodes.math_block) -> None:
    """A formula of its own, with lines divided by ``\\\\``."""
    translator.body.append(convert(rf"\begin{{split}}{{}}{node.astext()}\end{{split}}", display="block"))
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Connect what is above to the build."""
    app.add_html_math_renderer("mathml", (inline_math, None), (displayed_math, None))
    app.connect("builder-inited", generate)
    app.connect("autodoc-process-docstring", clean_docstring)
