"""A device that is not the CPU, for machines without a GPU: accelerator.cpp, built once and kept."""

import fcntl
import hashlib
import os
import subprocess
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("accelerator.cpp")
NAME = "elsewhere"


class Module:
    """What torch asks of a device's module, torch.elsewhere. Its random numbers are those of the CPU's generator."""

    device_count = staticmethod(lambda: 1)
    is_available = staticmethod(lambda: True)
    get_amp_supported_dtype = staticmethod(lambda: [torch.bfloat16])
    _is_in_bad_fork = staticmethod(lambda: False)
    manual_seed_all = staticmethod(torch.default_generator.manual_seed)
    get_rng_state = staticmethod(lambda device=NAME: torch.get_rng_state())
    set_rng_state = staticmethod(lambda state, device=NAME: torch.set_rng_state(state))


def command(source, library):
    """Return the words that build a source into a library for this torch."""
    home = Path(torch.__file__).parent
    folders = [
        f"-I{home / 'include'}",
        f"-I{home / 'include' / 'torch' / 'csrc' / 'api' / 'include'}",
        f"-L{home / 'lib'}",
    ]
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    options = ["-O0", "-std=c++20", "-shared", "-fPIC", abi]
    return ["c++", *options, *folders, str(source), "-o", str(library), "-ltorch", "-ltorch_cpu", "-lc10"]


def build(folder):
    """Return the path of the library; `folder` keeps what is built. Raises RuntimeError if it does not build.

    Building takes some 15 seconds; processes that come at once wait for the first.
    """
    key = hashlib.sha256(f"{torch.__version__} {' '.join(command('', ''))}".encode() + SOURCE.read_bytes())
    library = folder / f"{key.hexdigest()[:16]}.so"
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            part = folder / f"{os.getpid()}.so"
            built = subprocess.run(command(SOURCE, part), capture_output=True, text=True)
            if built.returncode:
                error = next((line for line in built.stderr.splitlines() if "error" in line), built.stderr.strip())
                raise RuntimeError(f"accelerator.cpp does not build for torch {torch.__version__}: {error}")
            part.rename(library)
    return library


def load(library):
    """Return the torch.device of a library, in a process that has trained nothing yet: torch counts devices then."""
    torch.ops.load_library(library)
    torch.utils.rename_privateuse1_backend(NAME)
    torch._register_device_module(NAME, Module)
    return torch.device(NAME)


def operations():
    """Return how many operations have been done there."""
    return torch.ops.fedmerge_tests.accelerator_operations()
