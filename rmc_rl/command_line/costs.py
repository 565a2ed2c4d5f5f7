"""What a verb cost: seconds on the clock and of the processor, and on which processor."""

import os
import platform
import time
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch


@dataclass
class Costs:
    """Measures from the moment it is made. Processes that the program has started count once they have ended."""

    started: float = field(default_factory=time.monotonic)
    cpu_started: float = field(default_factory=lambda: _cpu_seconds())

    @property
    def seconds(self) -> float:
        """Seconds on the clock."""
        return max(time.monotonic() - self.started, 1e-9)

    @property
    def cpu_seconds(self) -> float:
        """Seconds that processors have worked for this program, all threads together."""
        return _cpu_seconds() - self.cpu_started

    def lines(self, steps: int, device: torch.device) -> list[str]:
        """
        What a person is told.

        :param steps: of the environment
        :param device: where the networks were
        """
        first = f"time: {self.seconds:,.1f} seconds, {steps / self.seconds:,.0f} steps per second"
        return [first, f"processor: {self.cpu_seconds:,.1f} seconds of {processor(device)}"]

    def record(self, device: torch.device) -> dict[str, Any]:
        """
        The same for a file.

        :param device: where the networks were
        """
        return {"seconds": self.seconds, "cpu_seconds": self.cpu_seconds, "processor": processor(device)}


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def processor(device: torch.device) -> str:
    """
    The processor that computes.

    :param device: where the networks are
    :return: as in "Intel(R) Xeon(R) CPU (2 cores, 1 thread)", with the GPU if it is used
    """
    threads = torch.get_num_threads()
    text = f"{_cpu_name()} ({os.cpu_count()} cores, {threads} thread{'s' * (threads != 1)})"
    return f"{text}, {torch.cuda.get_device_name(device)}" if device.type == "cuda" else text


@cache
def _cpu_name() -> str:
    try:  # platform.processor() is empty on many Linux systems
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "an unknown processor"


def duration(seconds: float) -> str:
    """
    Seconds as people read them.

    :param seconds: as in 0.4, 83 or 5000
    :return: as in "0.4 s", "1 min 23 s" or "1 h 23 min"
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
