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
    return min(_of_the_system(), _of_the_limit(), _of_the_group())


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


def _of_the_group():
    """Return what the control group of this process leaves, as that of a SLURM job or a container."""
    left = math.inf
    for limit, taken in GROUP_FILES:
        with contextlib.suppress(OSError, ValueError):  # no such version of them, or "max"
            left = min(left, int(limit.read_text(encoding="utf-8")) - int(taken.read_text(encoding="utf-8")))
    return max(0, left)


def _group_files():
    """Return [(file of a limit, file of what is taken)] of the control groups that this process is in."""
    files, root = [], Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, kinds, path = line.split(":", 2)
            new = not kinds  # version 2
            if new or "memory" in kinds.split(","):
                group = (root if new else root / "memory") / path.lstrip("/")
                names = ("max", "current") if new else ("limit_in_bytes", "usage_in_bytes")
                for folder in (group, *group.parents):
                    files.append(tuple(folder / f"memory.{name}" for name in names))
                    if folder == root:
                        break
    return files


GROUP_FILES = _group_files()


def in_words(n_bytes):
    """Return so many bytes with their unit."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB")):
        if n_bytes >= unit:
            return f"{n_bytes / unit:.1f} {name}"
    return f"{n_bytes / 2**10:.1f} KiB"
