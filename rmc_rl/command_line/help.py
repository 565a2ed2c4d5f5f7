"""What ``--help`` prints: the YAML files that a command line reads, with their comments."""

import re
import textwrap
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

CONFIGS = "rmc_rl.configs"
GROUPS = ("algo", "family", "core")  # folders of YAML files, in the order in which they are read
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


def help_text(config_name: str, description: str, choices: Mapping[str, str]) -> str:
    """
    The help of a verb.

    :param config_name: the verb's YAML file, without its ending
    :param description: the text before the keys
    :param choices: the file that the command line chooses in each group
    """
    files = {f"Keys and their defaults ({config_name}.yaml)": f"{config_name}.yaml"}
    for group in GROUPS:
        if choices.get(group) in group_options(group):
            of = "" if group == "family" else f" of {group}"
            title = f"{group}={choices[group]} sets these keys{of} ({group} is one of {', '.join(group_options(group))})"
            files[title] = f"{group}/{choices[group]}.yaml"
    parts = [description.strip()]
    for title, name in files.items():
        # a block begins at a line without indentation
        blocks = re.split(r"\n(?=\S)", (_folder() / name).read_text().strip())
        shown = [block.rstrip() for block in blocks if not block.startswith(("defaults:", "hydra:", "# @package"))]
        parts.append(f"{title}:\n\n" + textwrap.indent("\n".join(shown), "  "))
    return "\n\n".join([*parts, ENDING])


def _folder() -> Path:
    return Path(str(resources.files(CONFIGS)))
