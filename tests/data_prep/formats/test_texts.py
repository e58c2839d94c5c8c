"""JSON lines and arrays, CSV, text with separators, chat columns: each bad record costs itself alone."""

import csv
import gzip
import io
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echo_lm.data_prep.formats.columns import text_of
from echo_lm.data_prep.formats.texts import separated
from tests.helpers.corpus import faults_of, prepared, texts_of, write_lines

TEXTS = [f"document {i} of many" for i in range(60)]


def with_line(path: Path, *lines: bytes) -> Path:
    """A file of good lines, and the given ones as lines 11, 12, ..."""
    good = [json.dumps({"text": text}).encode() for text in TEXTS]
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"\n".join([*good[:10], *lines, *good[10:]]) + b"\n")
    return path


@pytest.mark.parametrize("kind", ["jsonl", "huggingface"])
@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "x", "n": ' + b"7" * 5_000 + b"}", "not a line of JSON (Exceeds the limit"),
        (b'{"text": "x", "n": -1' + b"0" * 9_000 + b"}", "not a line of JSON (Exceeds the limit"),
        (b'{"text": 1' + b"e5}", "it is of type float"),
        (
            b'{"body": "x", "meta": {"lang": "en"}}',
            "no text under 'text': set text_column to one of body, meta, meta.lang",
        ),
        (b"{}", "(the record has no keys)"),
        (b'{"text": ["x"]}', "it is a list: set template"),
    ],
)
def test_a_bad_line_costs_itself(tmp_path: Path, kind: str, line: bytes, reason: str) -> None:
    with_line(tmp_path / "in/a.jsonl", line)
    dataset = prepared(tmp_path, kind, tmp_path / "in")
    (fault,) = faults_of(dataset)
    assert fault.line == 11
    assert reason in fault.reason
    assert texts_of(dataset) == sorted(TEXTS)


@pytest.mark.parametrize("kind", ["jsonl", "huggingface"])
def test_a_cut_gzip_among_good_files(tmp_path: Path, kind: str) -> None:
    write_lines(tmp_path / "in/a.jsonl", TEXTS)
    lines = "".join(json.dumps({"text": f"other {i}"}) + "\n" for i in range(2_000)).encode()
    (tmp_path / "in/b.jsonl.gz").write_bytes(gzip.compress(lines)[:-3_000])
    dataset = prepared(tmp_path, kind, tmp_path / "in")
    (fault,) = faults_of(dataset)
    assert fault.file.endswith("b.jsonl.gz")
    assert f"after line {fault.line}, rest unknown" in fault.reason
    assert 0 < fault.line < 2_000
    assert len(texts_of(dataset)) == len(TEXTS) + fault.line


def test_files_of_the_hub_with_other_columns(tmp_path: Path) -> None:
    write_lines(tmp_path / "in/a.jsonl", TEXTS[:30])
    (tmp_path / "in/b.jsonl").write_text("".join(json.dumps({"text": t, "more": [1]}) + "\n" for t in TEXTS[30:]))
    dataset = prepared(tmp_path, "huggingface", tmp_path / "in")
    assert texts_of(dataset) == sorted(TEXTS)


def test_text_files_of_the_hub_are_documents(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for i, text in enumerate(TEXTS):
        (tmp_path / f"in/{i}.txt").write_text(text)
    assert texts_of(prepared(tmp_path, "huggingface", tmp_path / "in")) == sorted(TEXTS)


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("kind", ["jsonl", "huggingface"])
def test_one_json_array(tmp_path: Path, kind: str, indent: int | None) -> None:
    (tmp_path / "in").mkdir()
    rows = [{"text": text, "more": {"x": [1, "]"]}} for text in TEXTS]
    (tmp_path / "in/a.json").write_text(json.dumps([*rows[:20], 5, *rows[20:]], indent=indent))
    dataset = prepared(tmp_path, kind, tmp_path / "in", dataset={"unit_bytes": 300})
    assert [(fault.line, fault.reason) for fault in faults_of(dataset)] == [
        (21, "not a JSON object: correct or remove it")
    ]
    assert texts_of(dataset) == sorted(TEXTS)
    (tmp_path / "in/a.json").write_text(json.dumps(rows, indent=indent)[:-40])
    dataset = prepared(tmp_path, kind, tmp_path / "in", dataset={"name": "cut"})
    assert [fault.line for fault in faults_of(dataset)] == [59]
    assert "rest unknown" in faults_of(dataset)[0].reason


def write_csv(path: Path, rows: list[list[str]], delimiter: str = ",") -> None:
    path.parent.mkdir(exist_ok=True)
    with open(path, "w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)


@pytest.mark.parametrize("kind", ["csv", "huggingface"])
@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
def test_csv(tmp_path: Path, kind: str, delimiter: str) -> None:
    texts = [*TEXTS, 'with "quotes",\nnewlines;\tand all', "日本"]
    write_csv(
        tmp_path / "in/a.csv",
        [["id", "text", "score"], *([str(i), t, str(i / 10)] for i, t in enumerate(texts))],
        delimiter,
    )
    dataset = prepared(tmp_path, kind, tmp_path / "in", at_least={"score": 3})
    assert texts_of(dataset) == sorted(texts[30:])


def test_bad_rows_of_csv(tmp_path: Path) -> None:
    good = "".join(f'{i},"{text}"\r\n' for i, text in enumerate(TEXTS)).encode()
    bad = b'60\r\n61,"x",y\r\n62,"a"b\r\n63,"\xff"\r\n64,\r\n'
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfid,text\r\n" + bad + good)
    dataset = prepared(tmp_path, "csv", tmp_path / "a.csv")
    assert [fault.line for fault in faults_of(dataset)] == [2, 3, 4, 5]
    assert texts_of(dataset) == sorted(TEXTS)
    assert dataset.manifest.sources[0].filtered_by == {"without text": 1}


def test_a_quote_that_is_never_closed(tmp_path: Path) -> None:
    write_csv(tmp_path / "in/a.csv", [["text"], *([text] for text in TEXTS)])
    (tmp_path / "in/b.csv").write_text('text\nfirst\n"second\nthird\n')
    dataset = prepared(tmp_path, "csv", tmp_path / "in")
    (fault,) = faults_of(dataset)
    assert (fault.line, fault.lost_bytes > 0) == (2, True)
    assert "a quote opened in line 3 is never closed), after line 2, rest unknown" in fault.reason.replace(
        ": correct it)", ")"
    )
    assert texts_of(dataset) == sorted([*TEXTS, "first"])


def test_documents_between_separators(tmp_path: Path) -> None:
    texts = [f"first line {i}\nsecond line" for i in range(60)]
    data = "\n---\n".join([*texts, "", " \n"])
    (tmp_path / "a.txt").write_text(data)
    (tmp_path / "b.txt").write_bytes(gzip.compress(data.replace("first", "1st").encode()))
    dataset = prepared(
        tmp_path, "text", tmp_path / "a.txt", tmp_path / "b.txt", separator="\n---\n", dataset={"unit_bytes": 200}
    )
    assert texts_of(dataset) == sorted([*texts, *(text.replace("first", "1st") for text in texts)])
    units = {shard.file.split("-")[1] for shard in dataset.manifest.shards if shard.split == "train"}
    assert len(units) > 5, "a plain file is cut between documents"


def test_a_bad_document_between_separators_is_named_by_its_line(tmp_path: Path) -> None:
    parts = [text.encode() for text in TEXTS]
    parts[20] = b"one\ntwo \xff"
    (tmp_path / "a.txt").write_bytes(b"\n%\n".join(parts))
    dataset = prepared(tmp_path, "text", tmp_path / "a.txt", separator="\n%\n", dataset={"unit_bytes": 100})
    assert [fault.line for fault in faults_of(dataset)] == [42]
    assert len(texts_of(dataset)) == 59


class Small(io.BytesIO):
    """A stream that is read a few bytes at a time."""

    def read(self, size: int = -1) -> bytes:
        return super().read(min(size, 3))


@settings(deadline=None)
@given(parts=st.lists(st.text("ab\n-", max_size=20), min_size=1, max_size=6), longest=st.integers(1, 25))
def test_separated_is_split(parts: list[str], longest: int) -> None:
    data = "--".join(parts).encode()
    expected = data.split(b"--")
    found = list(separated(Small(data), b"--", 1, longest))
    if expected[-1] == b"":
        expected.pop()
    assert [part for _, part in found] == [part[: longest + 1] for part in expected]
    lines = [1]
    for part in expected:
        lines.append(lines[-1] + part.count(b"\n"))
    assert [line for line, _ in found] == lines[:-1]


@pytest.mark.parametrize(
    ("template", "value", "text"),
    [
        ("lines", ["a", "b"], "a\nb"),
        ("paragraphs", ["a", "b"], "a\n\nb"),
        ("chatml", [{"role": "user", "content": "hi"}], "<|im_start|>user\nhi<|im_end|>\n"),
        ("dialogue", [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}], "human: hi\n\ngpt: ho"),
        ("dialogue", [{"role": "user", "content": [{"type": "text", "text": "hi"}]}], "user: hi"),
        ("dialogue", [{"role": "assistant", "content": None}], "assistant: "),
    ],
)
def test_templates(template: str, value: list, text: str) -> None:
    assert text_of(value, template) == text


@pytest.mark.parametrize(
    ("template", "value"),
    [
        ("lines", ["a", 1]),
        ("chatml", ["a"]),
        ("chatml", [{"role": "user"}]),
        ("dialogue", [{"role": "user", "content": [{"type": "image"}]}]),
        ("lines", {"a": 1}),
        (None, ["a"]),
    ],
)
def test_what_no_template_is_for(template: str | None, value: object) -> None:
    with pytest.raises(ValueError, match=r"template|role and content|not text|of type dict"):
        text_of(value, template)


def test_chat_columns_and_lists_in_a_source(tmp_path: Path) -> None:
    rows = [{"chat": {"messages": [{"role": "user", "content": text}]}} for text in TEXTS]
    (tmp_path / "in").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"chat": {"messages": ["x"]}}]))
    dataset = prepared(tmp_path, "jsonl", tmp_path / "in", text_column="chat.messages", template="dialogue")
    assert texts_of(dataset) == sorted(f"user: {text}" for text in TEXTS)
    assert "no text under 'chat.messages': a message has no role" in faults_of(dataset)[0].reason
    contents = prepared(
        tmp_path, "jsonl", tmp_path / "in", text_column="chat.messages.content", template="lines", dataset={"name": "c"}
    )
    assert texts_of(contents) == sorted(TEXTS)
