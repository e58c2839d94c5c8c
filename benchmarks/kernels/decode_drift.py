"""Drift of fp32 decoding from float64: one Mamba-2 and one SKA layer of echo-1m, random weights, token by token.

Prints, for each tenth of the run, the largest relative error of what SKA reads (y, before its output projection).

    python -m benchmarks.kernels.decode_drift [--tokens 100000]
"""

import argparse

import torch
from torch import Tensor

from echo_lm.models import build_model, preset
from echo_lm.models.model import EchoLM


def random_model() -> EchoLM:
    """A model with random weights of unit gain, since a freshly initialised SKA layer has no effect."""
    model = build_model(preset("echo-1m", vocab_size=512, layers=["mamba2", "ska"]))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.copy_(torch.randn(weight.shape, generator=generator) * weight.shape[1] ** -0.5)
    return model


class Reader:
    """Decodes with one model and its cache; keeps the last output y."""

    def __init__(self, model: EchoLM):
        self.model = model
        self.cache = [block.mixer.init_cache(1, model.embedding.weight) for block in model.blocks]
        model.blocks[1].mixer.out_proj.register_forward_pre_hook(self._keep)

    def _keep(self, _, inputs: tuple[Tensor]) -> None:
        self.y = inputs[0]

    def read(self, token: Tensor) -> Tensor:
        x, seen_by_gates = self.model.embed(token)
        for i, block in enumerate(self.model.blocks):
            x, self.cache[i] = block.step(x, self.cache[i], seen_by_gates)
        return self.y


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=100_000)
    count = parser.parse_args().tokens
    torch.set_num_threads(1)
    single, double = Reader(random_model()), Reader(random_model().double())
    tokens = torch.randint(0, 512, (count, 1), generator=torch.Generator().manual_seed(1))
    worst = 0.0
    with torch.no_grad():
        for t in range(count):
            y, exact = single.read(tokens[t]), double.read(tokens[t])
            if exact.norm() > 0:
                worst = max(worst, ((y - exact).norm() / exact.norm()).item())
            if (t + 1) % (count // 10) == 0:
                print(f"tokens up to {t + 1:7}: relative error of y at most {worst:.1e}", flush=True)
                worst = 0.0


if __name__ == "__main__":
    main()
