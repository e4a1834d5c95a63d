"""Memory of a client: measured where it ran alone, and recognised where it ran out."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Final

Reading = tuple[int, int]
"""The most bytes that a process took so far, and how many there are."""

Meter = Callable[[], Reading]
"""Reads a memory in the process that used it, after one client in a fresh worker.

A function of a module, or anything else that can be pickled.
"""

DEVICE: Final = "device"
MACHINE: Final = "machine"
"""Whose memory ran out."""

ALONE: Final = {
    DEVICE: "with whole GPUs in a fresh worker",
    MACHINE: "in a fresh worker with a machine to itself",
}
"""How a client is run again whose memory was too small."""

WAY_OUT: Final = {
    DEVICE: "set a smaller train.batch-size, train.gradient-checkpointing = true or, where the app "
    "uses several GPUs, resources.num-gpus = 2 or more",
    MACHINE: "set a smaller train.batch-size, or use a machine with more memory",
}
"""What helps where being alone did not."""

HEADROOM = 1.1
"""A client is given so much times what the first one took at its peak."""

_FINEST = 10_000  # Ray counts in ten-thousandths
_SAID_ON_MACHINE = ("can't allocate memory", "cannot allocate memory", "unable to allocate")
_SAID_ON_DEVICE = ("out of memory", "resource_exhausted", "alloc_failed")


def gpu_memory() -> Reading:
    """Return what this process took of its GPU, and the GPU's bytes.

    Beside the peak of PyTorch's allocator counts all else that is on the GPU now: the CUDA context
    and libraries, and what other programs hold.

    Raises:
        ImportError: If there is no torch.
        RuntimeError: If it sees no GPU.
    """
    import torch

    free, total = torch.cuda.mem_get_info()
    beside = total - free - torch.cuda.memory_reserved()
    return beside + torch.cuda.max_memory_reserved(), total


def machine_memory() -> Reading:
    """Return what this process took of the machine's memory at its peak, and the machine's bytes.

    Raises:
        ImportError: On Windows, which does not tell.
    """
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return peak, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def slots_of(reading: Reading) -> int:
    """Return how many clients like the one that was measured share a memory: 1 to 10,000."""
    peak, total = reading
    return min(max(int(total / (max(peak, 1) * HEADROOM)), 1), _FINEST)


def share_of(slots: int) -> float:
    """Return the fraction with which exactly so many share one, in Ray's ten-thousandths."""
    return _FINEST // slots / _FINEST


def ran_out(error: BaseException | None) -> str:
    """Return whose memory was too small, `DEVICE` or `MACHINE`, or an empty text: it was not that.

    Python, PyTorch, CUDA's libraries and JAX each have their own way to say it, and an app may
    raise something else ``from`` it.
    """
    for one in _chain(error):
        if isinstance(one, MemoryError):
            return MACHINE
        if type(one).__name__ == "OutOfMemoryError":  # torch's, which need not be installed
            return DEVICE
        if isinstance(one, RuntimeError | OSError):
            said = str(one).lower()
            if any(words in said for words in _SAID_ON_MACHINE):
                return MACHINE
            if any(words in said for words in _SAID_ON_DEVICE):
                return DEVICE
    return ""


def spoilt(error: BaseException | None) -> bool:
    """Return whether this process may have lost its GPU for good.

    After a failed assertion or a wrong address on the device, CUDA refuses whatever the same
    process asks next.
    """
    return any(type(one).__name__ == "AcceleratorError" for one in _chain(error))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that it came from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def let_go() -> None:
    """Give memory back that nothing refers to, also that which PyTorch keeps of a GPU."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def read(meters: Mapping[str, Meter]) -> dict[str, Reading | str]:
    """Return what each meter says, or in a text why it cannot."""
    found: dict[str, Reading | str] = {}
    for name, meter in meters.items():
        try:
            found[name] = meter()
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found
