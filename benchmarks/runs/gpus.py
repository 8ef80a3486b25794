"""GPU use and power through NVML, where the CUDA set has installed its Python binding (`nvidia-ml-py`) and a GPU is."""

import contextlib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

_MW_PER_W = 1000.0


@dataclass(frozen=True, slots=True)
class Gpus:
    """All GPUs of this machine."""

    nvml: Any
    handles: tuple[Any, ...]

    @classmethod
    def find(cls) -> Self | None:
        """None without the binding, the driver or a GPU."""
        try:
            nvml = importlib.import_module("pynvml")
        except ImportError:
            return None
        try:
            nvml.nvmlInit()
            handles = tuple(map(nvml.nvmlDeviceGetHandleByIndex, range(nvml.nvmlDeviceGetCount())))
        except nvml.NVMLError:
            return None
        return cls(nvml, handles) if handles else None

    def read(self) -> dict[str, float]:
        """Power of all together, mean utilisation, and memory in use of all together; without what NVML does not say
        of one of them, as of the utilisation of a GPU that is divided (MIG)."""
        nvml, whole = self.nvml, 100.0 * len(self.handles)
        figures: dict[str, Callable[[Any], float]] = {
            "gpu_power_w": lambda handle: nvml.nvmlDeviceGetPowerUsage(handle) / _MW_PER_W,
            "gpu_utilisation": lambda handle: nvml.nvmlDeviceGetUtilizationRates(handle).gpu / whole,
            "gpu_memory_gib": lambda handle: nvml.nvmlDeviceGetMemoryInfo(handle).used / 2**30,
        }
        found = {}
        for name, read in figures.items():
            with contextlib.suppress(nvml.NVMLError):
                found[name] = sum(map(read, self.handles))
        return found
