"""The same training on any topology: ZeRO stages, data parallel and sequence parallel, in fp32 by gloo."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from echo_lm.data_prep.loading.dataset import Dataset
from echo_lm.kernels import sequence
from echo_lm.kernels.predicted_sizes import PredictedSizes
from echo_lm.kernels.ssd import sequence as ssd_sequence
from echo_lm.models import language_model_loss
from echo_lm.pipeline.batches import make_loader
from echo_lm.pipeline.engine import build_engine
from echo_lm.pipeline.mesh import make_mesh
from echo_lm.pipeline.schedule import learning_rate_at
from echo_lm.pipeline.update import update
from tests.helpers.training_workers import Case, Result, collect, halves, play, randomized

ONE = [Case("echo", 0), Case("hybrid", 0), Case("token gate", 0), Case("dear gate", 0, steps=20)]
# Every stage, every size of a sequence's group and every option once; their other pairs are in `make soak`.
FOUR = [
    Case("echo", 0, 4),
    Case("echo", 1, 2),
    Case("echo", 2, 1, ("run.offload_optimizer=true",)),
    Case("echo", 3, 1, ("run.microbatch_sequences=1",)),
    Case("hybrid", 2, 1),
    Case("hybrid", 3, 4),
    Case("token gate", 3, 2, ("run.activation_checkpointing=true",)),
    Case("dear gate", 1, 1, ("run.microbatch_sequences=1",), 20),
]
OTHERS = [Case("echo", stage) for stage in (0, 1, 2, 3)] + [Case("hybrid", stage) for stage in (0, 1, 3)]
OTHERS += [
    Case("echo", 3, 2),
    Case("hybrid", 2, 2),
    Case("echo", 3, 2, ("run.activation_checkpointing=true",)),
    Case("dear gate", 3, 2, ("run.activation_checkpointing=true",), 20),
]


@pytest.fixture(scope="module")
def one(tmp_path_factory, data_root) -> dict[str, Result]:
    """Each model on one rank without ZeRO."""
    results = play(ONE, 1, data_root, tmp_path_factory.mktemp("one"))
    return {case.model: result for case, result in zip(ONE, results, strict=True)}


@pytest.fixture(scope="module")
def four(tmp_path_factory, data_root) -> dict[Case, Result]:
    """The same on four ranks, in every topology."""
    return dict(zip(FOUR, play(FOUR, 4, data_root, tmp_path_factory.mktemp("four")), strict=True))


@pytest.mark.parametrize("case", FOUR, ids=str)
def test_any_topology_gives_the_same_losses_and_weights(case, one, four):
    check_same(four[case], one[case.model])


@pytest.mark.slow
def test_the_other_topologies_too(one, tmp_path, data_root):
    for case, result in zip(OTHERS, play(OTHERS, 4, data_root, tmp_path), strict=True):
        check_same(result, one[case.model])


def check_same(result: Result, expected: Result) -> None:
    torch.testing.assert_close(result.losses, expected.losses, rtol=1e-5, atol=0)
    for ours, theirs in zip(result.metrics, expected.metrics, strict=True):
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)  # AdamW alone would not see its scale
        assert ours.keys() == theirs.keys()
        assert ours.get("gate_mean", 0) == pytest.approx(theirs.get("gate_mean", 0), rel=1e-4)
        assert ours["loss_by_source"] == pytest.approx(theirs["loss_by_source"], rel=1e-5)
    assert result.weights.keys() == expected.weights.keys()
    for name, weight in expected.weights.items():
        assert (result.weights[name] - weight).norm() <= 1e-4 * weight.norm(), name


def test_losses_by_source_make_up_that_of_the_text(one, data_root):
    """Each counts by the labels of its rows."""
    config = ONE[0].config(1)
    loader = make_loader(Dataset.open(data_root / config.data.name), config)
    both = 0
    for step, metrics in enumerate(one["echo"].metrics):
        batch = loader.batch(step)
        labels = [batch.loss_mask[halves(batch) == source].sum().item() for source in (0, 1)]
        losses = [metrics["loss_by_source"].get(name, 0.0) for name in ("first", "second")]
        assert losses[0] * labels[0] + losses[1] * labels[1] == pytest.approx(
            metrics["loss_text"] * sum(labels), rel=1e-6
        )
        assert [loss > 0 for loss in losses] == [count > 0 for count in labels]
        both += all(labels) and labels[0] != labels[1]
    assert both > 3


def test_the_gate_penalty_acts_in_the_second_half(one):
    """As long as they pay nothing the training is that of a model whose gates never pay; then they shut."""
    free, dear = one["echo"], one["dear gate"]
    gate_mean = [step["gate_mean"] for step in dear.metrics]
    torch.testing.assert_close(dear.losses[:10], free.losses[:10], rtol=1e-6, atol=0)
    assert not torch.equal(dear.losses[11:12], free.losses[11:12])
    assert gate_mean[-1] < 0.98 * gate_mean[9]
    assert all("gate_mean" not in step for step in free.metrics)


def rank_gradients(stage: int, data: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """A step in which rank r brings (r + 1) times one gradient g; AdamW's first moment, and g."""
    case = Case("echo", stage, overrides=("train.gradient_clipping=0",))
    config = case.config(dist.get_world_size())
    tokens = torch.randint(0, 64, (2, 32), generator=torch.Generator().manual_seed(0))
    reference = randomized(config.model.resolve(64), seed=config.seed)
    reference(tokens).square().mean().backward()
    engine = build_engine(config, 64, torch.device("cpu"), make_mesh(1))
    engine.backward((dist.get_rank() + 1) * engine(tokens).square().mean())
    engine.step()
    moments = collect(engine, "exp_avg")
    engine.destroy()
    return {name: (moments[name], p.grad.flatten()) for name, p in reference.named_parameters() if p.requires_grad}


def penalized_gradient(overrides: tuple[str, ...], data: Path) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    """AdamW's first moment after one step in which open gates cost 0.7 nats, and the gradient of that by hand."""
    case = Case("dear gate", 0, overrides=("train.gradient_clipping=0", *overrides))
    config = case.config(dist.get_world_size())
    dataset = Dataset.open(data / config.data.name)
    vocab_size = dataset.tokenizer().get_vocab_size()
    batch = make_loader(dataset, config).batch(0)
    reference = randomized(config.model.resolve(vocab_size), seed=config.seed)
    borders = None if batch.whole_rows else batch.cu_seqlens
    logits, gate_mean = reference(batch.tokens, cu_seqlens=borders, return_gate_mean=True)
    nats, labels = language_model_loss(logits, batch.labels, batch.loss_mask)
    (nats / labels + 0.7 * gate_mean).backward()
    mesh = make_mesh(1)
    engine = build_engine(config, vocab_size, torch.device("cpu"), mesh)
    result = update(engine, batch, 1e-4, config, mesh, flags=[], gate_penalty=0.7)
    assert result.metrics["gate_mean"] == pytest.approx(gate_mean.item(), rel=1e-5)
    moments = collect(engine, "exp_avg")
    engine.destroy()
    return [(name, moments[name], p.grad.flatten()) for name, p in reference.named_parameters() if p.requires_grad]


def test_a_step_descends_on_the_loss_and_what_open_gates_cost(tmp_path, data_root):
    for gradients in play([(), ("run.microbatch_sequences=1",)], 2, data_root, tmp_path, penalized_gradient):
        for name, moment, gradient in gradients:
            torch.testing.assert_close(
                moment, 0.1 * gradient, rtol=1e-3, atol=1e-4 * gradient.abs().max().item() + 1e-9, msg=name
            )


def test_the_world_mean_is_the_gradient_in_every_stage(tmp_path, data_root):
    """Gradients 1 and 2 have the mean 1.5, whatever DeepSpeed does with them in between."""
    for stage, gradients in enumerate(play([0, 1, 2, 3], 2, data_root, tmp_path, rank_gradients)):
        assert gradients
        for name, (moment, gradient) in gradients.items():
            torch.testing.assert_close(
                moment, 0.1 * 1.5 * gradient, rtol=1e-4, atol=1e-5 * gradient.abs().max(), msg=f"stage {stage} {name}"
            )


class WrongPredictions(PredictedSizes):
    """Predict always that tails begin at the twelfth of a segment's 32 tokens."""

    def number(self, key, value, safe):
        return super().number(key, value, lambda size: 12)


def losses_with_predictions(predicted_sizes: type[PredictedSizes], data: Path) -> tuple[list[float], int, int]:
    """Losses of three steps of two ranks that share sequences, how often the model ran, and how many messages its layers sent."""
    config = Case("echo", 3, 2, ("run.activation_checkpointing=true",)).config(dist.get_world_size())
    mesh = replace(make_mesh(2), predicted_sizes=predicted_sizes())
    dataset = Dataset.open(data / config.data.name)
    loader = make_loader(dataset, config)
    engine = build_engine(config, dataset.tokenizer().get_vocab_size(), torch.device("cpu"), mesh)
    runs = []
    engine.module.register_forward_pre_hook(lambda *_: runs.append(1))
    losses, messages = [], []
    old, ssd_sequence.LONG = ssd_sequence.LONG, 1
    all_gather = sequence.all_gather
    sequence.all_gather = lambda *arguments: messages.append(1) or all_gather(*arguments)
    for step in range(3):
        rate = learning_rate_at(step, config.train)
        losses.append(
            update(engine, loader.batch(step), rate, config, mesh, flags=[], gate_penalty=0.0).metrics["loss"]
        )
    ssd_sequence.LONG, sequence.all_gather = old, all_gather
    engine.destroy()
    return losses, len(runs), len(messages)


def test_a_wrong_guess_of_a_layer_is_made_good(tmp_path, data_root):
    """The second and third step run twice: in the first nothing was predicted. Each of the two layers sends one message forward and
    one backward, and none more for activation checkpointing; but SKA asks its neighbour for a row, and again when it is
    computed again."""
    (right, once, messages), (wrong, twice, more) = play(
        [PredictedSizes, WrongPredictions], 2, data_root, tmp_path, losses_with_predictions
    )
    assert wrong == pytest.approx(right, rel=1e-6)
    assert twice == once + 2
    assert messages == 6 * once
    assert more == messages + 6
