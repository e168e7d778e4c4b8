"""How much memory there is for more."""

import contextlib
import math
import re
import resource
from pathlib import Path


def free(device):
    """Return the bytes that this process can still take on a torch.device.

    In main memory that is what the system has and what the process's own limits leave; where the system does not tell,
    there is no end to them.
    """
    if device.type == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)[0]
    return min(_of_the_system(), _of_the_limit())


def _of_the_system():
    with contextlib.suppress(OSError):
        found = re.search(r"MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text(encoding="utf-8"))
        if found:
            return int(found[1]) * 1024
    return math.inf


def _of_the_limit():
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return math.inf
    with contextlib.suppress(OSError):
        taken = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * resource.getpagesize()
        return max(0, limit - taken)
    return limit
