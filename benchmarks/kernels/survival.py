"""Does a fact survive n mentions of its key? The bare SKA operator with gates set by hand, on a CPU (docs/design/recall.md).

    python -m benchmarks.kernels.survival

One head of rank 24. Tokens have random unit vectors as keys and random values; `needles` pairs `k v` stand in noise, and the first
key comes up `mentions` times more, each time followed by noise. A scheme says what is written where and how far its gate is open;
noise leaks by `leak` (the gate squared, beta). Then the first key is asked: y is compared with all 32 values by its direction, and
its size with that of the value that was written.
"""

import torch
from torch import Tensor

from echo_lm.kernels.ska import ska_attention

RANK, WIDTH, KEYS, VALUES, NOISE = 24, 32, 40, 32, 32
SCHEMES = {
    "K=1, token gate": dict(power=1, opens="token"),
    "K=0 lagged, token gate": dict(power=0, lag=True, opens="token"),
    "K=0, key of the token before, gate at the value": dict(power=0, shift=True, opens="value"),
    "K=1, written once the next token is known": dict(power=1, opens="pair"),
}


def sequence(length: int, needles: int, mentions: int, generator: torch.Generator) -> tuple[Tensor, int, int]:
    """Token ids `[T]` (keys, then values, then noise), the key that is asked and the index of its value."""
    tokens = KEYS + VALUES + torch.randint(NOISE, (length,), generator=generator)
    places = 2 * torch.randperm(length // 2, generator=generator)[: needles + mentions]
    keys = torch.randperm(KEYS, generator=generator)[:needles]
    values = torch.randint(VALUES, (needles,), generator=generator)
    tokens[places[:needles]], tokens[places[:needles] + 1] = keys, KEYS + values
    tokens[places[needles:]] = keys[0]
    return tokens, int(keys[0]), int(values[0])


def gates(tokens: Tensor, opens: str, leak: float) -> Tensor:
    """The gate at each token, `[T]`: 1 where it is open, sqrt(leak) elsewhere."""
    is_key, is_value = tokens < KEYS, (tokens >= KEYS) & (tokens < KEYS + VALUES)
    if opens == "value":
        is_open = is_value
    elif opens == "pair":  # a key before a value, a value after a key
        before_value = torch.cat((is_value[1:], is_value[:1]))
        after_key = torch.cat((is_key[-1:], is_key[:-1]))
        is_open = (is_key & before_value) | (is_value & after_key)
    else:
        is_open = is_key | is_value
    return torch.where(is_open, 1.0, leak**0.5).double()


def trial(
    scheme: dict, length: int, needles: int, mentions: int, leak: float, generator: torch.Generator
) -> tuple[float, float]:
    """1 if the value is found by its direction, else 0; and how large y is along it (1: as written)."""
    tokens, asked, answer = sequence(length, needles, mentions, generator)
    vectors = torch.nn.functional.normalize(
        torch.randn(KEYS + VALUES + NOISE, RANK, generator=generator, dtype=torch.float64), dim=-1
    )
    contents = torch.randn(KEYS + VALUES + NOISE, WIDTH, generator=generator, dtype=torch.float64)
    keys = vectors[torch.cat((tokens[:1], tokens[:-1]))] if scheme.get("shift") else vectors[tokens]
    gate = gates(tokens, scheme["opens"], leak)[:, None]
    query = vectors[asked].expand(1, 1, 1, -1)
    z, v = (gate * keys)[None, :, None], (gate * contents[tokens])[None, :, None]
    q = torch.cat((torch.zeros_like(z[:, 1:]), query), 1)
    y = ska_attention(q, z, v, mode="prefix", power=scheme["power"], value_lag=scheme.get("lag", False))[0, -1, 0]
    values = contents[KEYS : KEYS + VALUES]
    found = torch.nn.functional.cosine_similarity(values, y[None], dim=-1).argmax() == answer
    size = (y @ values[answer]) / values[answer].square().sum()
    return float(found), float(size)


def main() -> None:
    print("| scheme | leak | needles | " + " | ".join(f"{n} mentions" for n in (0, 4, 16, 64, 256, 1024)) + " |")
    print("|---|---|---|" + "---|" * 6)
    for name, scheme in SCHEMES.items():
        for leak, needles in ((0.0, 1), (0.0, 8), (1e-4, 1), (1e-6, 1)):
            cells = []
            for mentions in (0, 4, 16, 64, 256, 1024):
                generator = torch.Generator().manual_seed(0)
                trials = [trial(scheme, 16 * max(mentions, 16), needles, mentions, leak, generator) for _ in range(50)]
                found, size = (sum(column) / len(trials) for column in zip(*trials, strict=True))
                cells.append(f"{100 * found:.0f}% ({size:.3f})")
            print(f"| {name} | {leak:g} | {needles} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
