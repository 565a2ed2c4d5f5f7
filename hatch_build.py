"""
Builds the C++ kernels when the package is built or installed from source, where there is a compiler.

Without one, or where they do not compile, the wheel is pure Python and cores compute with eager torch. ``CXX=false`` asks
for such a wheel. An editable install gets the libraries into the checkout.
"""

import importlib.util
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import sys_tags

KERNELS = Path("rmc_rl", "agents", "cores", "kernels", "cpu")


class KernelsHook(BuildHookInterface[Any]):
    """Run for each target that is built; wheels alone hold libraries."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        # by its path: the package itself needs torch, which is absent where packages are built
        spec = importlib.util.spec_from_file_location("build_kernels", Path(self.root) / KERNELS / "build.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        failures = module.build()
        for name, reason in failures.items():
            self.app.display_warning(f"{module.library(name).name} was not built: {reason}")
        built = [name for name in module.instruction_sets() if name not in failures]
        if built:
            build_data["artifacts"] += [f"/{KERNELS.as_posix()}/{module.library(name).name}" for name in built]
            build_data["pure_python"] = False
            # of this platform, for every Python; manylinux and musllinux promise what was not checked
            platforms = (tag.platform for tag in sys_tags())
            platform = next(name for name in platforms if not name.startswith(("manylinux", "musllinux")))
            build_data["tag"] = f"py3-none-{platform}"
