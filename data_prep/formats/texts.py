"""Readers of text, JSON lines and CSV: streams of bytes to documents, one by one."""

import csv
import io
import json
from collections.abc import Iterator

from .columns import MISSING, listed, lookup, row_document
from .records import Context, Fault, RawDocument, UnreadableError

CHUNK = 2**20
DELIMITERS = (",", "\t", ";", "|")
Records = Iterator[RawDocument | Fault]


def read_text(file: io.BufferedReader, first: int, context: Context) -> Records:
    """The document of a text file; or its documents, if the source has a separator. Blank ones between separators are none."""
    separator = context.config.separator
    if separator is None:
        yield _decoded(file.read(context.longest + 1), 1, context)
        return
    for line, data in separated(file, separator.encode(), first, context.longest):
        if data.strip():
            yield _decoded(data, line, context)


def _decoded(data: bytes, line: int, context: Context) -> RawDocument | Fault:
    if len(data) > context.longest:
        return context.too_long(line)
    try:
        return context.document(data.decode("utf-8"), {}, line)
    except UnicodeDecodeError as error:
        return context.not_utf8(line + data[: error.start].count(b"\n"), error.start)


def separated(file: io.BufferedReader, separator: bytes, first: int, longest: int) -> Iterator[tuple[int, bytes]]:
    """Yield the parts of a stream between separators, each with the number of its first line.

    Of a part longer than `longest` only the first `longest + 1` bytes are kept.
    """
    buffer, kept, line, newlines = b"", b"", first, 0
    while chunk := file.read(CHUNK):
        buffer += chunk
        *whole, buffer = buffer.split(separator)
        for part in whole:
            yield line, (kept + part)[: longest + 1]
            line += newlines + (part + separator).count(b"\n")
            kept, newlines = b"", 0
        # Everything before a possible beginning of a separator belongs to the present part.
        certain = max(0, len(buffer) - len(separator) + 1)
        if certain > longest:
            kept = (kept + buffer[:certain])[: longest + 1]
            newlines += buffer[:certain].count(b"\n")
            buffer = buffer[certain:]
    if kept or buffer:
        yield line, (kept + buffer)[: longest + 1]


def read_jsonl(file: io.BufferedReader, first: int, context: Context) -> Records:
    """The documents of JSON lines, or of a file that is one JSON array of objects."""
    if first == 1 and file.peek(64).lstrip()[:1] == b"[":
        yield from _read_array(file, context)
        return
    for line, data in lines(file, first, longest_record(context)):
        if data.strip():
            yield _json_line(data, line, context)


def longest_record(context: Context) -> int:
    """Bytes of the longest JSON record: a byte of text takes up to six as an escape, and there are other columns."""
    return 6 * context.longest + 100_000


def lines(file: io.BufferedReader, first: int, longest: int) -> Iterator[tuple[int, bytes]]:
    """Yield lines with their numbers; an overlong line is replaced by a placeholder that is still too long."""
    number = first
    while line := file.readline(longest):
        whole = line
        while len(line) == longest and not line.endswith(b"\n"):
            line = file.readline(longest)
            if not line:
                break
            whole = b"-" * (longest + 1)
        yield number, whole
        number += 1


def _json_line(data: bytes, line: int, context: Context) -> RawDocument | Fault:
    if len(data) > longest_record(context):
        return context.too_long(line)
    try:
        value = json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        return context.not_utf8(line, error.start)
    except (ValueError, RecursionError) as error:  # ValueError also of a number with thousands of digits
        reason = getattr(error, "msg", None) or str(error).partition(";")[0]
        return context.fault(line, f"not a line of JSON ({reason}): correct or remove it")
    if not isinstance(value, dict):
        return context.fault(line, "not a JSON object: correct or remove the line")
    return row_document(value, line, context)


def _read_array(file: io.BufferedReader, context: Context) -> Records:
    """The objects of one JSON array, decoded one by one; "line" is the number of the object."""
    stream = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape")
    decoder, number = json.JSONDecoder(), 0
    text, size = stream.read(CHUNK).lstrip()[1:], CHUNK
    while True:
        text = text.lstrip(" \t\r\n,")
        if text.startswith("]"):
            if (text[1:] + stream.read(CHUNK)).strip():
                raise UnreadableError("text follows the end of the JSON array: correct it")
            return
        try:
            value, end = decoder.raw_decode(text)
        except (ValueError, RecursionError) as error:
            more = stream.read(size) if len(text) <= longest_record(context) else ""
            if not more:
                raise UnreadableError(
                    f"not a JSON array ({getattr(error, 'msg', error)} after object {number}): write a line for each object"
                ) from error
            text, size = text + more, 2 * size
            continue
        number, text, size = number + 1, text[end:], CHUNK
        if isinstance(value, dict):
            yield row_document(value, number, context)
        else:
            yield context.fault(number, "not a JSON object: correct or remove it")
        if len(text) < CHUNK:
            text += stream.read(CHUNK)


def read_csv(file: io.BufferedReader, first: int, context: Context) -> Records:
    """The documents of a file of comma-, tab-, semicolon- or pipe-separated values whose first row has the names.

    Fields may hold newlines within quotes.
    """
    csv.field_size_limit(max(2**17, context.longest))
    text_lines = (line.decode("utf-8", "surrogateescape") for line in iter(lambda: file.readline(context.longest), b""))
    head = next(text_lines, "")
    names, delimiter = _header(head, context)
    if lookup(dict.fromkeys(names), context.config.text_column) is MISSING:
        raise UnreadableError(f"no column {context.config.text_column!r}: set text_column to one of {listed(names)}")
    reader = csv.reader(text_lines, delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 2  # of the first line of the row, in the file
        try:
            fields = next(reader, None)
        except csv.Error as error:
            if "end of data" in str(error):
                raise UnreadableError(f"a quote opened in line {line} is never closed: correct it") from error
            yield context.fault(line, f"not a row of CSV ({error}): correct or remove it")
            continue
        if fields is None:
            return
        if not fields:
            continue
        if len(fields) != len(names):
            yield context.fault(line, f"a row of {len(fields)} fields below a header of {len(names)}: correct it")
            continue
        try:
            "".join(fields).encode("utf-8")
        except UnicodeEncodeError as error:
            yield context.not_utf8(line, error.start)
            continue
        yield row_document(dict(zip(names, fields, strict=True)), line, context)


def _header(line: str, context: Context) -> tuple[list[str], str]:
    """Column names from the first line, and the delimiter: the first one that gives a column of the wanted name."""
    wanted = context.config.text_column
    rows = {delimiter: next(csv.reader([line.rstrip("\r\n")], delimiter=delimiter), []) for delimiter in DELIMITERS}
    best = next((delimiter for delimiter, names in rows.items() if wanted in names), None)
    best = best or max(DELIMITERS, key=lambda delimiter: len(rows[delimiter]))
    return rows[best], best
