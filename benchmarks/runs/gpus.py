"""GPU use and power through NVML, where the CUDA set has installed its Python binding (`nvidia-ml-py`) and a GPU is."""

import importlib
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
        """Power of all together, mean utilisation, and memory in use of all together."""
        nvml = self.nvml
        return {
            "gpu_power_w": sum(nvml.nvmlDeviceGetPowerUsage(handle) for handle in self.handles) / _MW_PER_W,
            "gpu_utilisation": sum(nvml.nvmlDeviceGetUtilizationRates(handle).gpu for handle in self.handles)
            / (100.0 * len(self.handles)),
            "gpu_memory_gib": sum(nvml.nvmlDeviceGetMemoryInfo(handle).used for handle in self.handles) / 2**30,
        }
