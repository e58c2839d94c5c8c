"""Echo in `transformers`: padding, generation, folders of either side, and opening without an import of ours."""

import subprocess
import sys

import pytest
import torch
import transformers

from echo_lm.data_prep.preparing.tokenizer import copy_tokenizer, load_tokenizer, save_tokenizer, train_tokenizer
from echo_lm.models import UserError, from_pretrained, generate, save_pretrained
from echo_lm.models.huggingface import to_huggingface

TOKENS = torch.arange(40).view(2, 20)
TEXTS = ["one two", "a longer prompt of several words", "x"]
FAMILIES = ["echo-1m", "hybrid-1m", "paper-1m-sequence-max"]


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(train_tokenizer([f"{text} and more words" for text in TEXTS] * 3, 420), folder)
    return folder


@pytest.fixture
def model_folder(random_model, tokenizer_folder, tmp_path):
    """What a checkpoint holds as `model`."""
    folder = tmp_path / "model"
    size = load_tokenizer(tokenizer_folder).get_vocab_size()
    save_pretrained(random_model("echo-1m", vocab_size=size), folder)
    copy_tokenizer(tokenizer_folder / "tokenizer.json", folder)
    return folder


def _padded(rows, side, *, fill=7):
    width = max(map(len, rows))
    pads = [[fill] * (width - len(row)) for row in rows]
    ids = [pad + row if side == "left" else row + pad for row, pad in zip(rows, pads, strict=True)]
    zeros = [[0] * len(pad) for pad in pads]
    ones = [[1] * len(row) for row in rows]
    mask = [z + o if side == "left" else o + z for z, o in zip(zeros, ones, strict=True)]
    return torch.tensor(ids), torch.tensor(mask)


ROWS = [[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5], [8, 9, 7], [9]]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_padded_row_gives_what_it_gives_alone(name, side, random_model):
    wrapped = to_huggingface(random_model(name))
    ids, mask = _padded(ROWS, side)
    logits = wrapped(ids, attention_mask=mask).logits
    for row, real, got in zip(ROWS, mask.bool(), logits, strict=True):
        alone = wrapped(torch.tensor([row])).logits[0]
        torch.testing.assert_close(got[real], alone, atol=2e-4, rtol=2e-4)
    last = wrapped(ids, attention_mask=mask, logits_to_keep=1).logits
    torch.testing.assert_close(last, logits[:, -1:])
    together = wrapped.generate(ids, attention_mask=mask, max_new_tokens=5, do_sample=False, pad_token_id=0)
    for row, got in zip(ROWS, together, strict=True):
        alone = wrapped.generate(torch.tensor([row]), max_new_tokens=5, do_sample=False)
        assert got[-5:].tolist() == alone[0, -5:].tolist()


def test_a_mask_of_another_shape_is_refused(random_model):
    with pytest.raises(ValueError, match="as input_ids"):
        to_huggingface(random_model("echo-1m"))(TOKENS, attention_mask=torch.zeros(2, 19))


def test_logits_and_loss_are_those_of_the_model(random_model):
    model = random_model("echo-1m")
    wrapped, want = to_huggingface(model), model(TOKENS)
    assert torch.equal(wrapped(TOKENS).logits, want)
    labels = TOKENS.clone()
    labels[:, :5] = -100
    nats = -want[:, 4:-1].log_softmax(-1).gather(2, TOKENS[:, 5:, None]).mean()
    torch.testing.assert_close(wrapped(TOKENS, labels=labels).loss, nats)


def test_folders_of_either_side_open_in_both(random_model, tmp_path):
    model = random_model("echo-1m")
    ours, theirs, parts = tmp_path / "ours", tmp_path / "theirs", tmp_path / "parts"
    save_pretrained(model, ours)
    to_huggingface(model).save_pretrained(theirs)
    to_huggingface(model).save_pretrained(parts, max_shard_size="1MB")
    assert len(list(parts.glob("*.safetensors"))) > 1
    for folder in (ours, theirs, parts):
        assert torch.equal(transformers.AutoModelForCausalLM.from_pretrained(folder)(TOKENS).logits, model(TOKENS))
        assert torch.equal(from_pretrained(folder)(TOKENS), model(TOKENS))
    wrapped = transformers.AutoModelForCausalLM.from_pretrained(ours)
    greedy = wrapped.generate(TOKENS[:, :4], max_new_tokens=4, do_sample=False)
    assert greedy[:, 4:].tolist() == generate(model, TOKENS[:, :4].tolist(), max_new_tokens=4)
    lost = sorted(parts.glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(UserError, match=f"{lost.name} is missing, which"):
        from_pretrained(parts)


def test_tokenizer_and_pipeline(model_folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder)
    for text in TEXTS:
        assert tokenizer(text)["input_ids"] == load_tokenizer(model_folder).encode(text).ids
    model = transformers.AutoModelForCausalLM.from_pretrained(model_folder)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id != tokenizer.pad_token_id
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    assert inputs["attention_mask"].tolist()[2][-1] == 1 > inputs["attention_mask"].tolist()[2][0]
    together = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    writer = transformers.pipeline("text-generation", model=model, tokenizer=tokenizer, batch_size=3)
    written = writer(TEXTS, max_new_tokens=6, do_sample=False)
    stop = tokenizer.eos_token_id
    for text, row, (answer,) in zip(TEXTS, together, written, strict=True):
        prompt = tokenizer(text)["input_ids"]
        (alone,) = generate(from_pretrained(model_folder), [prompt], max_new_tokens=6, stop_token=stop)
        assert row[-6:].tolist()[: len(alone)] == alone
        assert answer["generated_text"] == text + tokenizer.decode(alone, skip_special_tokens=True)


def test_a_process_without_our_import_opens_a_folder(model_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    code = (
        "import sys; from transformers import AutoModelForCausalLM as A; "
        "model = A.from_pretrained(sys.argv[1], trust_remote_code=True); model.save_pretrained(sys.argv[2]); "
        "A.from_pretrained(sys.argv[2], trust_remote_code=True); print(type(model).__module__)"
    )
    command = [sys.executable, "-c", code, str(model_folder), str(tmp_path / "saved")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.stdout.strip() == "echo_lm.models.huggingface", done.stderr
    names = {"config.json", "generation_config.json", "model.safetensors", "modeling_echo_lm.py"}
    assert {file.name for file in (tmp_path / "saved").iterdir()} == names
