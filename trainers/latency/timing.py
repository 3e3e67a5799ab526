"""How long networks take on a device.

Times plain PyTorch: eager, float32, no gradients, channels last in memory, batch norms not folded
into convolutions.
"""

import ctypes
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Protocol

import torch
from torch import Tensor, nn

_WARM_UP, _REPEATS = 5, 25


class Stopwatch(Protocol):
    """Times what a device does between calls of `lap`."""

    def start(self) -> None:
        """Wait until the device is idle, and begin the first lap."""
        ...

    def lap(self) -> None:
        """End a lap, without waiting for the device."""
        ...

    def stop(self) -> list[float]:
        """The laps since `start`, ms, after waiting for the device."""
        ...


class CpuStopwatch:
    """For a CPU, which has done its work when a call returns.

    From the first stopwatch on, the process keeps the memory that tensors free. Otherwise a layer
    may get fresh pages from the operating system, depending on what ran before; this can take
    several times as long as its arithmetic.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        _keep_freed_memory()

    def start(self) -> None:
        self._times = [self._now()]

    def lap(self) -> None:
        self._times.append(self._now())

    def stop(self) -> list[float]:
        return [1000 * (end - begin) for begin, end in pairwise(self._times)]


class CudaStopwatch:
    """For a GPU, which runs behind the calls: events in its queue record the times."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def start(self) -> None:
        torch.cuda.synchronize(self._device)
        self._events: list[torch.cuda.Event] = []
        self.lap()

    def lap(self) -> None:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        self._events.append(event)

    def stop(self) -> list[float]:
        self._events[-1].synchronize()
        return [begin.elapsed_time(end) for begin, end in pairwise(self._events)]


def stopwatch(device: torch.device) -> Stopwatch:
    """A stopwatch for a CPU or a GPU."""
    return CudaStopwatch(device) if device.type == "cuda" else CpuStopwatch()


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def _keep_freed_memory() -> None:
    with suppress(AttributeError, OSError, TypeError):  # if the C library is not glibc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_TRIM_THRESHOLD, 2**30)
        mallopt(_M_MMAP_THRESHOLD, 2**25)  # the largest value that glibc accepts


def placed(network: nn.Module, device: torch.device) -> nn.Module:
    """`network` itself, moved to the device and laid out for timing."""
    return network.eval().to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def random_images(batch_size: int, resolution: int, device: torch.device) -> Tensor:
    """(B, 3, R, R) from a separate random generator, laid out for timing."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch_size, 3, resolution, resolution, generator=generator)
    return images.to(device).contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def latency(
    network: nn.Module, *, batch_size: int, resolution: int, device: torch.device
) -> tuple[float, str]:
    """Median time of a batch, in ms, after a warm-up, and the device it was measured on.

    `network` is not changed. Other load on the machine affects the result.
    """
    copy, watch = placed(deepcopy(network), device), stopwatch(device)
    images = random_images(batch_size, resolution, device)
    times = []
    for _ in range(_WARM_UP + _REPEATS):
        watch.start()
        copy(images)
        watch.lap()
        times += watch.stop()
    return median(times[_WARM_UP:]), f"{device_name(device)}, batches of {batch_size}"


def device_name(device: torch.device) -> str:
    """Model of a GPU, or of the CPU with the number of threads used."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{_cpu_name()}, {threads} thread{'s' * (threads > 1)}"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, [*models, platform.processor()]), platform.machine())
