"""Harness, bigbench, decoding, adaptation: offline, on small real models, with chance where chance must be."""

import io
import json
import tarfile

import pytest
import torch

from echo_lm.data_prep.preparing.tokenizer import reserved_start
from echo_lm.data_prep.recall import RecallVocabulary
from echo_lm.evals.adaptation import adapted_copy
from echo_lm.evals.config import Suite
from echo_lm.evals.layout import trained_on_recall
from echo_lm.evals.measurements.bigbench import Item, encode_pair, evaluate_bigbench, extract, items
from echo_lm.evals.measurements.decode import evaluate_decode, with_peak_bytes
from echo_lm.evals.measurements.likelihood import continuation_scores
from echo_lm.evals.measurements.recall import evaluate_recall
from echo_lm.evals.measurements.recall_cells import RecallCell, RecallGrid
from echo_lm.evals.protocols.harness import HarnessConfig
from echo_lm.evals.runner import measure
from echo_lm.evals.sweeps.training_config import RecallTraining
from echo_lm.models import (
    AttentionConfig,
    FeedForwardConfig,
    ModelConfig,
    build_model,
    count_parameters,
    from_pretrained,
    preset,
)
from echo_lm.models.accounting import state_bytes
from echo_lm.models.common.errors import UserError


@pytest.fixture(scope="module")
def model(model_folder):
    return from_pretrained(model_folder).eval()


def test_packed_requests_score_as_each_would_alone(dataset, model):
    double = from_pretrained_double(model)
    generator = torch.Generator().manual_seed(0)
    requests = [
        (
            torch.randint(130, 400, (a,), generator=generator).tolist(),
            torch.randint(130, 400, (b,), generator=generator).tolist(),
        )
        for a, b in ((3, 2), (1, 1), (40, 7), (5, 0), (9, 20))
    ]
    found = continuation_scores(double, requests, batch_tokens=50)
    for (context, continuation), (nats, greedy) in zip(requests, found, strict=True):
        with torch.inference_mode():
            logits = double(torch.tensor([context + continuation]))[0].log_softmax(-1)
        at = range(len(context) - 1, len(context) + len(continuation) - 1)
        assert nats == pytest.approx(sum(float(logits[p, t]) for p, t in zip(at, continuation, strict=True)), abs=1e-5)
        assert greedy == all(int(logits[p].argmax()) == t for p, t in zip(at, continuation, strict=True))
    with pytest.raises(ValueError, match="empty context"):
        continuation_scores(double, [([], [1])], batch_tokens=50)


def from_pretrained_double(model):
    return build_like(model).double()


def build_like(model):
    copy = build_model(model.config)
    copy.load_state_dict(model.state_dict())
    return copy.eval()


@pytest.fixture
def bigbench(tmp_path):
    """A small sdist laid out as the real one, and what `extract` keeps of it."""
    agreement = {
        "examples": [
            {"input": "The athlete ", "target_scores": {"admires": 1, "admire": 0}},
            {"input": "The athletes ", "target_scores": {"admires": 0, "admire": 1}},
        ]
        * 20
    }
    questions = {
        "task_prefix": "Answer.\n",
        "example_input_prefix": "Q: ",
        "example_output_prefix": " A:",
        "examples": [{"input": "1+1?", "target_scores": {"one": 0, "two": 1, "three": 0, "four": 0}}],
    }
    files = {
        "bigbench-1.0.0/bigbench/benchmark_tasks/agreement/simple.json": agreement,
        "bigbench-1.0.0/bigbench/benchmark_tasks/agreement/nested/task.json": agreement,
        "bigbench-1.0.0/bigbench/benchmark_tasks/sums/task.json": questions,
        "bigbench-1.0.0/bigbench/benchmark_tasks/essays/task.json": {"examples": [{"input": "a", "target": "b"}]},
        "bigbench-1.0.0/bigbench/benchmark_tasks/sums/results/task.json": questions,
        "bigbench-1.0.0/docs/task.json": questions,
    }
    archive = tmp_path / "bigbench-1.0.0.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in files.items():
            data = json.dumps(content).encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    folder = tmp_path / "bigbench"
    assert extract(archive, folder) == 3
    return folder


def test_bigbench_items_are_read_as_they_are_laid_out(bigbench):
    (question,) = items(bigbench, "sums")
    assert question == Item("Answer.\nQ: 1+1? A: ", ("one", "two", "three", "four"), (0, 1, 0, 0))
    assert len(items(bigbench, "agreement")) == 80
    assert len(items(bigbench, "agreement/simple", limit=7)) == 7
    with pytest.raises(UserError, match="no multiple-choice task 'essays'"):
        items(bigbench, "essays")
    with pytest.raises(UserError, match="--fetch-bigbench"):
        items(bigbench / "nowhere", "sums")


def test_bigbench_takes_the_likeliest_choice(bigbench, dataset, model):
    """A model that finds "admires" likelier, whatever stands before it, is right half of the time: that is chance."""
    tokenizer = dataset.tokenizer()
    (row,) = evaluate_bigbench(model, tokenizer, ["agreement/simple"], bigbench, batch_tokens=512)
    assert (row["queries"], row["chance"]) == (40, 0.5)
    correct = 0
    for item in items(bigbench, "agreement/simple"):
        scores = [
            continuation_scores(model, [encode_pair(tokenizer, item.context, choice)], batch_tokens=64)[0][0]
            for choice in item.choices
        ]
        correct += item.scores[scores.index(max(scores))] == 1
    assert row["correct"] == correct


def test_a_pair_is_encoded_as_it_is_written(dataset):
    tokenizer = dataset.tokenizer()
    context, continuation = encode_pair(tokenizer, "echo koopman ", "filter")
    assert tokenizer.decode(context[1:] + continuation) == "echo koopman filter"
    assert tokenizer.decode(continuation) == " filter"
    assert encode_pair(tokenizer, "", "echo")[0] == context[:1]


@pytest.fixture
def harness(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


OWN_TASK = """
task: capitals
dataset_path: json
dataset_kwargs: {data_files: {test: "FOLDER/capitals.jsonl"}}
test_split: test
output_type: generate_until
doc_to_text: "{{q}}"
doc_to_target: "{{a}}"
generation_kwargs: {until: ["x"], max_gen_toks: 3}
metric_list: [{metric: exact_match}]
"""


def test_the_harness_runs_offline_on_local_tasks_and_says_what_it_left_out(
    harness, dataset, model, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)  # no repository: git must not complain on the screen
    own = tmp_path / "own"
    own.mkdir()
    (own / "capitals.yaml").write_text(OWN_TASK.replace("FOLDER", str(own)))
    (own / "capitals.jsonl").write_text('{"q": "France:", "a": "Paris"}\n')
    config = HarnessConfig(
        local=("heldout_continuation", "heldout_last_word", "capitals"), hub=("hellaswag",), folder=str(own), limit=40
    )
    before = torch.get_rng_state()
    told: list[tuple[int, int]] = []
    suite = Suite(name="h", protocols={"harness": config}, batch_tokens=4096)
    found = measure(model, suite, dataset, on_progress=lambda done, total: told.append((done, total)))
    assert told == [(4096 * (n + 1), 4096 * len(told)) for n in range(len(config.local) + len(config.hub))]
    assert torch.equal(before, torch.get_rng_state())
    assert capfd.readouterr().err == ""
    rows = {row["task"]: row for row in found["tasks"]}
    assert rows["heldout_continuation"]["low"] <= 0.25 <= rows["heldout_continuation"]["high"]
    assert rows["heldout_last_word"]["values"]["perplexity"] > 1
    assert rows["capitals"]["values"]["exact_match"] == 0
    assert found["skipped"] == {"hellaswag": "HF_HUB_OFFLINE is set"}
    assert found["metrics"]["harness/heldout_continuation/acc"] == rows["heldout_continuation"]["accuracy"]
    with pytest.raises(UserError, match="no local task 'nothing'"):
        measure(model, Suite(name="h", protocols={"harness": HarnessConfig(local=("nothing",))}), dataset)


@pytest.mark.slow
def test_a_random_model_of_the_size_of_gpt2_scores_chance(harness, bigbench, dataset):
    """12 layers of attention, 768 wide, 50,257 ids: 124M parameters, every one of them random."""
    config = ModelConfig(
        vocab_size=50_257,
        d_model=768,
        layers=("attention",) * 12,
        attention=AttentionConfig(num_heads=12),
        feedforward=FeedForwardConfig(kind="swiglu", width=2048),
    )
    assert 120e6 < count_parameters(config).total < 130e6
    model = build_model(config, seed=0).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
    suite = Suite(name="h", batch_tokens=1024, protocols={"harness": {"local": ["heldout_continuation"]}})
    rows = measure(model, suite, dataset)["tasks"]
    assert rows[0]["low"] <= 0.25 <= rows[0]["high"]
    (row,) = evaluate_bigbench(model, dataset.tokenizer(), ["agreement"], bigbench, batch_tokens=1024)
    assert row["low"] <= row["chance"] <= row["high"]


def test_decoding_is_flat_for_echo_and_grows_with_attention(dataset):
    sizes, peaks = {}, {}
    for name in ("echo-1m", "hybrid-1m"):
        config = preset(name, vocab_size=500)
        model = build_model(config).eval()
        rows = evaluate_decode(model, (64, 1024), tokens=2)
        assert all(row["tokens_per_second"] > 0 for row in rows)
        # What is measured is after the steps that were decoded.
        assert [row["state_bytes"] for row in rows] == [state_bytes(config, context + 5) for context in (64, 1024)]
        sizes[name] = [row["state_bytes"] for row in rows]
        weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
        peaks[name] = [row["peak_bytes"] - weights for row in rows]
        assert all(peak > size for peak, size in zip(peaks[name], sizes[name], strict=True))
    assert sizes["echo-1m"][0] == sizes["echo-1m"][1]
    assert sizes["hybrid-1m"][1] > 5 * sizes["hybrid-1m"][0]
    assert peaks["echo-1m"][0] == peaks["echo-1m"][1]
    assert peaks["hybrid-1m"][1] - peaks["hybrid-1m"][0] >= sizes["hybrid-1m"][1] - sizes["hybrid-1m"][0]


def test_the_peak_of_memory_is_that_of_the_worst_moment(capfd):
    """4 MB that stay, 4 that come and go before, 8 at once after; of what the process holds besides nothing."""
    outside = torch.ones(2**22)

    def work() -> torch.Tensor:
        torch.ones(2**20).sum()
        kept = torch.ones(2**20)
        (kept + 1).sum()
        return outside[:1] + kept

    kept, peak = with_peak_bytes(work, "cpu")
    assert kept.nbytes == 4 * 2**20
    assert 8 * 2**20 <= peak < 8 * 2**20 + 1000
    assert capfd.readouterr() == ("", "")


def test_an_adapted_copy_learns_and_the_checkpoint_stays_as_it_was(dataset):
    vocabulary = RecallVocabulary(reserved_start(dataset.tokenizer()))
    model = build_model(preset("echo-1m", vocab_size=dataset.manifest.vocab_size), seed=0).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    protocol = RecallTraining(steps=30, batch_sequences=16, lengths=(16,), pairs=(1,), learning_rate=3e-3)
    adapted = adapted_copy(model, vocabulary, protocol)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    cell = RecallCell("sysprompt", 1, 16, 100, {})
    opens = [evaluate_recall(m, cell, vocabulary, batch_tokens=2048)["open_accuracy"] for m in (model, adapted)]
    assert opens[0] == 0
    assert opens[1] > 0, "it learns first that answers are values"
    again = adapted_copy(model, vocabulary, protocol)
    assert all(torch.equal(a, b) for a, b in zip(adapted.parameters(), again.parameters(), strict=True))


def test_a_suite_adapts_only_where_training_held_no_recall(dataset, model, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("echo_lm.evals.runner.adapted_copy", lambda model, *_, **__: asked.append(model) or model)
    grid = RecallGrid(task="sysprompt", pairs=(1,), lengths=(16,), queries=4)
    suite = Suite(name="s", protocols={"recall": (grid,)}, adapt=RecallTraining(steps=1))
    measure(model, suite, dataset, adapt=False)
    assert not asked
    measure(model, suite, dataset, adapt=True)
    assert len(asked) == 1
    for mixture, expected in (("{recall: null}", False), ("{recall: {share: 0.5}}", True), ("{}", True)):
        (tmp_path / "config.yaml").write_text(f"mixture: {mixture}\n")
        assert trained_on_recall(tmp_path) is expected


def test_needles_in_real_text(dataset, model):
    grid = RecallGrid(task="niah", pairs=(2,), lengths=(300,), queries=8, options={"haystack": "text"}, recurrent=True)
    found = measure(model, Suite(name="s", protocols={"recall": (grid,)}), dataset)
    assert found["rows"][0]["queries"] == 8
    assert found["metrics"].keys() == {"recall/niah-2-haystack-text/length-300", "recall/mean/niah"}
