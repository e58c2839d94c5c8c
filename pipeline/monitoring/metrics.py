"""Metrics of a training step: speed, MFU, bits per byte, memory. Formulas here, names and units in `events.py`."""

import math
from typing import TYPE_CHECKING

import psutil
import torch

from ...models import ModelConfig
from ...models.accounting import GIB, training_flops
from ..config import RunConfig

if TYPE_CHECKING:  # they import tokenizers, which benchmarks on a bare machine lack
    from ...data_prep.loading.dataset import Dataset
    from ...data_prep.loading.loader import BatchLoader

# Dense peak in FLOP/s of bf16 products, and of fp32 ones (tf32 is off), by a part of the device's name; from the makers'
# data sheets, SXM where there are several.
PEAK_FLOPS = {
    "B200": (2250e12, 75e12),
    "H200": (989e12, 67e12),
    "H100 PCIe": (756e12, 51e12),
    "H100": (989e12, 67e12),
    "A100": (312e12, 19.5e12),
    "L40S": (362e12, 91.6e12),
    "A10": (125e12, 31.2e12),
    "RTX 4090": (165e12, 82.6e12),
}


def peak_flops(device: torch.device, precision: str) -> float | None:
    """The device's peak in FLOP/s for "bf16" or "fp32"; None on a CPU or a device that is not in the table."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak[precision == "fp32"] for part, peak in PEAK_FLOPS.items() if part in name), None)


def model_flops_utilization(
    model: ModelConfig, length: int, tokens_per_second: float, peak: float | None, world: int
) -> float | None:
    """MFU = tokens/s * FLOPs a token / (peak FLOP/s of a device * devices); None without a peak.

    FLOPs a token are `models.accounting.training_flops`: three times the forward pass over rows of `length` tokens, logits
    of every position included; what activation checkpointing computes again does not count.
    """
    if peak is None:
        return None
    return tokens_per_second * training_flops(model, length) / (peak * world)


def bits_per_byte(nats_per_token: float, bytes_per_token: float) -> float:
    """Bits per byte from the loss: nats per token / (ln 2 * bytes per token)."""
    return nats_per_token / (math.log(2) * bytes_per_token)


def bytes_per_token(dataset: "Dataset", shares: dict[str, float]) -> float:
    """UTF-8 bytes of text for each token of training text, sources weighed by their share of the text rows.

    An average of the dataset: a step's bits per byte uses it for every batch, so that the curve is a rescaled loss.
    """
    total = sum(shares.values())
    mean = 0.0
    for name, share in shares.items():
        stream = dataset.split("train", name)
        mean += share / total * stream.text_bytes / stream.num_tokens
    return mean


def memory_gib(device: torch.device) -> float:
    """Memory in GiB: on CUDA the peak of allocated tensors since the last call, on a CPU the resident memory of the process."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) / GIB
        torch.cuda.reset_peak_memory_stats(device)
        return peak
    return psutil.Process().memory_info().rss / GIB


class Meter:
    """Computes the metrics of each step of a run."""

    def __init__(self, config: RunConfig, dataset: "Dataset", loader: "BatchLoader", device: torch.device, world: int):
        self._train, self._device, self._world = config.train, device, world
        self._model = config.model.resolve(dataset.tokenizer().get_vocab_size())
        self._peak = peak_flops(device, config.train.precision)
        shares = {use.name: use.share for use in loader.describe(1) if use.epochs is not None}
        self._bytes_per_token = bytes_per_token(dataset, shares) if shares else None

    def measure(self, losses: dict[str, float | None], seconds: float) -> dict[str, float | None]:
        """`bits_per_byte`, `tokens_per_second`, `mfu` and `memory_gib` of a step that took `seconds`, data included."""
        text, tokens_per_second = losses.get("loss_text"), self._train.batch_tokens / seconds
        bits = None
        if text is not None and self._bytes_per_token is not None:
            bits = bits_per_byte(text, self._bytes_per_token)
        return {
            "bits_per_byte": bits,
            "tokens_per_second": tokens_per_second,
            "mfu": model_flops_utilization(
                self._model, self._train.sequence_length, tokens_per_second, self._peak, self._world
            ),
            "memory_gib": memory_gib(self._device),
        }
