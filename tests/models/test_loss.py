"""The loss that never has all logits is the plain one: value and every gradient."""

import pytest
import torch

from echo_lm.models import build_model, language_model_loss, preset, projected_loss, squared_log_partition


def inputs(count=37, width=12, vocabulary=50):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, width, generator=generator, dtype=torch.float64)
    weight = torch.randn(vocabulary, width, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, vocabulary, (count,), generator=generator)
    mask = torch.rand(count, generator=generator, dtype=torch.float64).add(0.5)
    return x, weight, labels, mask


@pytest.mark.parametrize("rows", [1, 8, 37, 64])
@pytest.mark.parametrize("z_loss", [0.0, 0.3])
def test_in_parts_it_is_the_plain_loss_and_its_gradients(rows, z_loss):
    x, weight, labels, mask = inputs()
    results = []
    for whole in (True, False):
        ours = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
        if whole:
            logits = ours[0] @ ours[1].T
            nats = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
            objective = (nats * mask).sum() + z_loss * (logits.logsumexp(-1).square() * mask).sum()
            fp32 = language_model_loss(logits, labels, mask)[0] + z_loss * squared_log_partition(logits, mask)
            torch.testing.assert_close(objective.float(), fp32)  # the reference is the project's one loss
        else:
            objective, nats = projected_loss(*ours, labels, mask, z_loss=z_loss, rows=rows)
            assert not nats.requires_grad
        results.append([objective, nats, *torch.autograd.grad(3 * objective, ours)])
    for plain, parts in zip(*results, strict=True):
        torch.testing.assert_close(parts, plain, rtol=1e-12, atol=1e-12)


def test_no_more_logits_than_asked_for_exist_at_once(monkeypatch):
    x, weight, labels, mask = inputs()
    row_counts = []
    linear = torch.nn.functional.linear
    monkeypatch.setattr(torch.nn.functional, "linear", lambda a, b: row_counts.append(len(a)) or linear(a, b))
    projected_loss(x.requires_grad_(), weight, labels, mask, rows=10)[0].backward()
    assert row_counts == [10, 10, 10, 7]


def test_bf16_keeps_the_objective_in_fp32():
    x, weight, labels, mask = (t.bfloat16() if t.is_floating_point() else t for t in inputs())
    objective, nats = projected_loss(x.requires_grad_(), weight, labels, mask.float(), rows=10)
    objective.backward()
    assert objective.dtype == nats.dtype == torch.float32
    assert x.grad.dtype == torch.bfloat16
    plain = language_model_loss(x.detach() @ weight.T, labels, mask.float())[0]
    torch.testing.assert_close(objective, plain, rtol=1e-2, atol=0)


def test_the_model_hands_its_last_states_to_the_loss():
    model = build_model(preset("echo-1m", vocab_size=64))
    tokens = torch.randint(0, 64, (2, 24), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(48) % 3 == 0).float().view(2, 24)
    at = mask.flatten().nonzero()[:, 0]
    logits = model(tokens, logits_to_keep=mask.bool())
    torch.testing.assert_close(model(tokens, logits_to_keep=at), logits)
    labels = tokens.flatten()[at]
    found, _ = model(
        tokens, logits_to_keep=at, head_fn=lambda x, w: projected_loss(x, w, labels, mask.flatten()[at], rows=5)
    )
    torch.testing.assert_close(found, language_model_loss(logits, labels, mask.flatten()[at])[0])
