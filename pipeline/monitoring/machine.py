"""Utilisation of rank 0's machine during training, measured every ten seconds: processors, memory and GPU."""

import time

import psutil
import torch

from ...models.accounting import GIB

EVERY_SECONDS = 10.0


class MachineMeter:
    """Measures the machine of this process and its GPU, at most every `EVERY_SECONDS`."""

    def __init__(self, device: torch.device):
        self._device, self._process = device, psutil.Process()
        self._measured_at = float("-inf")
        self._has_nvml = device.type == "cuda"
        psutil.cpu_percent()  # the first call starts the interval that the next one reports on

    def measure(self) -> dict[str, float]:
        """The fields of a `step` event, percentages from 0 to 100; empty if the last measurement is recent.

        `cpu_percent` and `host_memory_percent` are of the whole machine, `process_gib` the resident memory of this process,
        `gpu_percent` (the share of time in which the GPU ran a kernel) and `gpu_memory_percent` of this process's GPU, whoever
        uses it.
        """
        now = time.monotonic()
        if now - self._measured_at < EVERY_SECONDS:
            return {}
        self._measured_at = now
        found = {
            "cpu_percent": psutil.cpu_percent(),
            "host_memory_percent": psutil.virtual_memory().percent,
            "process_gib": self._process.memory_info().rss / GIB,
        }
        if self._device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self._device)
            found["gpu_memory_percent"] = 100 * (1 - free / total)
            found |= self._gpu()
        return found

    def _gpu(self) -> dict[str, float]:
        """The field `gpu_percent`; empty where NVIDIA's management library is not available."""
        if not self._has_nvml:
            return {}
        try:
            return {"gpu_percent": float(torch.cuda.utilization(self._device))}
        except Exception:  # nvidia-ml-py is not installed, or the driver refuses, with exception classes of its own
            self._has_nvml = False
            return {}
