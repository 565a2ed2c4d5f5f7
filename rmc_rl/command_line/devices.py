"""What the machine has: devices, threads and memory."""

import ctypes.util
import os
import sys
from pathlib import Path

import torch

from rmc_rl.agents import parallel
from rmc_rl.errors import UsageError, require, require_whole

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of mallopt(3)
LARGEST_BLOCK = 1 << 30  # bytes
GB = 1e9


def find_device(name: object, key: str = "device") -> torch.device:
    """
    The device that a configuration names.

    :param name: "auto" (a GPU if the machine has one), "cpu", "cuda", "cuda:1" ...
    :param key: the name of the setting, for the message
    :raises UsageError: for an unknown device or one that this machine lacks
    """
    count = torch.cuda.device_count()
    # of processes that train together, each has its own GPU of the machine
    own = f"cuda:{parallel.local_rank() % count}" if count and parallel.size() > 1 else "cuda"
    if name == "auto":
        return torch.device(own if count else "cpu")
    if name == "cuda" and count:
        return torch.device(own)
    present = ["auto", "cpu", *(["cuda"] if count else []), *(f"cuda:{index}" for index in range(count))]
    if torch.backends.mps.is_available():
        present.append("mps")
    require(name in present, f"{key} must be one this machine has ({', '.join(present)})", name)
    return torch.device(str(name))


def check_threads(num_threads: int | None) -> None:
    """
    Check a number of threads against the machine: far too many of them stop it, or end the process.

    :param num_threads: CPU threads of torch; None: torch decides
    :raises UsageError: for more threads than the machine has processors
    """
    if num_threads is not None:
        require_whole("num_threads", num_threads)
        processors = os.cpu_count() or 1
        require(num_threads <= processors, f"num_threads must be at most {processors}, the processors here", num_threads)


def keep_freed_memory() -> None:
    """
    Let glibc keep large blocks that were freed, on Linux with glibc.

    By default glibc returns a freed block above 32 MB to the system at once, and maps the next one page by page.
    """
    name = ctypes.util.find_library("c")
    if sys.platform == "linux" and name is not None and hasattr(libc := ctypes.CDLL(name), "mallopt"):
        libc.mallopt(MMAP_THRESHOLD, LARGEST_BLOCK)
        libc.mallopt(TRIM_THRESHOLD, LARGEST_BLOCK)


def available_memory(device: torch.device) -> int | None:
    """
    The memory that a device has left, in bytes.

    :param device: the device
    :return: bytes; None if it cannot be found out
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024  # it counts in KiB
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return None


def require_memory(what: str, num_bytes: int, device: torch.device) -> None:
    """
    Check a size before its memory is taken.

    :param what: what needs the memory and which settings decide its size
    :param num_bytes: an estimate of its size
    :param device: where it will lie
    :raises UsageError: if the device has less memory left
    """
    available = available_memory(device)
    if available is not None and num_bytes > available:
        has = f"{device.type} has {available / GB:,.1f} GB left"
        raise UsageError(f"{what} must fit into memory: {has}, got about {num_bytes / GB:,.1f} GB")
