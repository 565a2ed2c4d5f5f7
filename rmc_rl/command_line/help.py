"""What ``--help`` and ``--help-all`` print: the YAML files that a command line reads, with their comments."""

import inspect
import re
import textwrap
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

CONFIGS = "rmc_rl.configs"
GROUPS = ("algo", "family", "core")  # folders of YAML files, in the order in which they are read
FURTHER = "# Further keys"  # the line of a YAML file below which --help does not read
SHORT_ENDING = """\
More keys: {groups}, and more of {name} itself.
--help-all lists all keys with their defaults. A mistake gets one line with the nearest valid name."""
ENDING = """\
Files are read in this order; later ones win, and the command line wins over all files.
env_kwargs takes any keyword of the environment, curriculum those of our worlds that take a range ([low, high], as in
env_kwargs.delay=[5,50], draws a number for each episode). core=module:name takes a core of your own.
--cfg job prints the configuration and ends. -m runs every combination of key=a,b,c. --hydra-help explains the other flags."""


def group_options(group: str) -> list[str]:
    """
    The YAML files of a group.

    :param group: any key; "core" for the files of ``configs/core``
    :return: their names without ending, sorted; empty if the key is no group
    """
    return sorted(path.stem for path in (_folder() / group).glob("*.yaml")) if group in GROUPS else []


def help_text(
    config_name: str, description: str, choices: Mapping[str, str], keywords: Mapping[str, Any], everything: bool
) -> str:
    """
    The help of a verb.

    :param config_name: the verb's YAML file, without its ending
    :param description: the text before the keys
    :param choices: the file that the command line chooses in each group
    :param keywords: of the environment, with their defaults
    :param everything: ``--help-all``; otherwise one screen, if the verb's YAML file says which keys those are
    """
    main, further, _ = (_folder() / f"{config_name}.yaml").read_text().partition(f"\n{FURTHER}\n")
    listed = "" if not keywords else _filled(f"env_kwargs of {choices['env']}:", keywords)
    if further and not everything:
        groups = [
            f"{group}={choices[group]} (one of {', '.join(group_options(group))})" for group in GROUPS if group in choices
        ]
        ending = SHORT_ENDING.format(groups=";\n".join(groups), name=config_name)
        parts = ["\n\n".join(description.strip().split("\n\n")[:2]), _shown(main), listed, ending]
        return "\n\n".join(part for part in parts if part)
    files = {f"Keys and their defaults ({config_name}.yaml)": f"{config_name}.yaml"}
    for group in GROUPS:
        if choices.get(group) in group_options(group):
            of = "" if group == "family" else f" of {group}"
            title = f"{group}={choices[group]} sets these keys{of} ({group} is one of {', '.join(group_options(group))})"
            files[title] = f"{group}/{choices[group]}.yaml"
    of_both = f"family_core/{choices.get('family')}_{choices.get('core')}.yaml"
    if (_folder() / of_both).is_file():
        files[f"family={choices['family']} changes these keys of core={choices['core']}"] = of_both
    texts = {title: _shown((_folder() / name).read_text()) for title, name in files.items()}
    parts = [description.strip(), *(f"{title}:\n\n{text}" for title, text in texts.items()), listed, ENDING]
    return "\n\n".join(part for part in parts if part)


def _filled(title: str, keywords: Mapping[str, Any]) -> str:
    """Keywords with their defaults, in lines of 120 letters."""
    words = [name if default is inspect.Parameter.empty else f"{name}={default}" for name, default in keywords.items()]
    return textwrap.fill(f"{title} {', '.join(words)}", 120, subsequent_indent="  ", break_long_words=False)


def _shown(text: str) -> str:
    """The keys of a YAML file that a person sets, with their comments, indented."""
    blocks = re.split(r"\n(?=\S)", text.strip())  # a block begins at a line without indentation
    hidden = ("defaults:", "hydra:", "# @package", FURTHER)
    return textwrap.indent("\n".join(block.rstrip() for block in blocks if not block.startswith(hidden)), "  ")


def _folder() -> Path:
    return Path(str(resources.files(CONFIGS)))
