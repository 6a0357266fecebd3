"""Reading files: text, pages and books, tables, folders of them, downloads.

for piece in read_text("my_book.txt"):
    ...

`TEXTS` and `TABLES` say which files are read and how.
"""

import codecs
import contextlib
import csv
import gzip
import http.client
import io
import itertools
import json
import os
import re
import urllib.request
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..files import UserPath, cache_dir, check_readable, sha256, written
from . import DataError
from .markup import epub_pages, html_text


_PIECE_BYTES = 1 << 22
_LINES_BYTES = 1 << 14  # of which lines are made: the first one is there soon
_HEAD_BYTES = 1 << 12  # of a file, to see what it is
# UTF-32's before UTF-16's, which begins in the same way.
_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}


# ---- Finding -------------------------------------------------------------------------------------------------------


def find_files(paths: Iterable[str | os.PathLike], report: Callable[[str], None] = print) -> list[Path]:
    """The files that `paths` name: a folder stands for those in it, at any depth, whose suffix is known, by name.

    Args:
        report: Called with a line about each folder: how many files are read, and which are left out.

    Raises:
        DataError: A path does not exist, is a pipe or a device, is empty or may not be read; or a folder contains no
            file that can be read.
    """
    files: list[Path] = []
    for name in paths:
        if not os.fspath(name):  # a variable of the shell that is not set
            raise DataError("the path of a text is empty")
        if not (path := Path(name)).exists():
            raise DataError(f"no such file: {path}")
        files += _files_in(path, report) if path.is_dir() else [_regular_file(path)]
    for path in files:
        check_readable(path, DataError)
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty")
    return files


def _regular_file(path: Path) -> Path:
    if not path.is_file() or str(path).startswith(("/dev/stdin", "/dev/fd/")):
        raise DataError(f"{path} is a pipe or a device, which is read only once; save it to a file and name that")
    return path


def _files_in(folder: Path, report: Callable[[str], None]) -> list[Path]:
    def refuse(error: OSError) -> None:
        raise DataError(f"cannot read the folder {error.filename}: {error.strerror}") from error

    found: list[Path] = []
    left_out: Counter[str] = Counter()
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        left_out["links to folders"] += sum(Path(parent, name).is_symlink() for name in folders)
        for path in (Path(parent, name) for name in names if not name.startswith(".")):
            if suffix_of(path) not in (*TEXTS, *TABLES) or not path.is_file():
                left_out[path.suffix.lower() or "without a suffix"] += 1
            elif path.stat().st_size == 0:
                left_out["empty"] += 1
            else:
                found.append(path)
    others = f"; left out: {_counted(left_out)}" if +left_out else ""
    if not found:
        raise DataError(
            f"no file that can be read in the folder {folder}; read are {' '.join([*TEXTS, *TABLES])}{others}"
        )
    kinds = _counted(Counter(map(suffix_of, found)))
    report(f"{folder}: {len(found):,} files are read ({kinds}){others}")
    return sorted(found)


def _counted(kinds: Counter[str]) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in sorted(kinds.items()) if count)


def suffix_of(path: str | os.PathLike) -> str:
    """The suffix that says how a file is read, in lower case and without `.gz`."""
    return Path(os.fspath(path).lower().removesuffix(".gz")).suffix


@contextlib.contextmanager
def _opened(path: str | os.PathLike) -> Iterator[Any]:
    """A file for reading, decompressed if its name ends with `.gz`."""
    try:
        with open(path, "rb", buffering=0) as file:
            if os.fspath(path).lower().endswith(".gz"):
                with gzip.open(file) as decompressed:
                    yield decompressed
            else:
                yield file
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataError(f"{os.fspath(path)} is not a complete gzip file: {error}") from error


# ---- Text ----------------------------------------------------------------------------------------------------------


def read_text(path: str | os.PathLike, encoding: str | None = None, piece_bytes: int | None = None) -> Iterator[str]:
    """The text of a file in pieces, line endings unchanged, without a byte-order mark.

    Args:
        encoding: Default: UTF-8. A byte-order mark takes precedence.
        piece_bytes: Bytes of the file in a piece. Default: 4 MB.

    Raises:
        DataError: The file has another encoding; the message names the offset of the first wrong byte, and the
            encoding that the file probably has.
    """
    with _opened(path) as file:
        yield from _decoded(file.read, os.fspath(path), encoding, piece_bytes or _PIECE_BYTES)


def _decoded(
    read: Callable[[int], bytes], place: str, encoding: str | None, piece_bytes: int = _PIECE_BYTES
) -> Iterator[str]:
    raw = read(max(piece_bytes, *map(len, _MARKS)))
    mark = next(filter(raw.startswith, _MARKS), b"")
    name = _MARKS.get(mark) or encoding or "utf-8"
    decoder = codecs.getincrementaldecoder(name)()
    offset = 0
    while True:
        content = raw if offset else raw[len(mark) :]
        pending = len(decoder.getstate()[0])  # bytes of a character that the last piece cut in two
        try:
            text = decoder.decode(content, final=not raw)
        except UnicodeDecodeError as error:
            position = offset + len(raw) - len(content) - pending + error.start
            wrong = f"byte 0x{error.object[error.start]:02x} at offset {position}"
            advice = _advice(error.object, error.start) if name == "utf-8" else "give another one with --encoding"
            shown = "UTF-8" if name == "utf-8" else name
            raise DataError(f"{place} is not {shown}: {wrong}; {advice}") from None
        except UnicodeError as error:  # UTF-16 and UTF-32 without a byte-order mark
            known = codecs.lookup(name).name
            raise DataError(f"{place}: {error}; give --encoding {known}-le or {known}-be") from None
        offset += len(raw)
        if text:
            yield text
        if not raw:
            return
        raw = read(piece_bytes)


# Encodings of text in which most letters are not ASCII, the characters that it consists of, and how many at least.
_ENCODINGS = {
    "cp1251": ("[\u0430-\u044f\u0451]", 0.7),
    "koi8_r": ("[\u0430-\u044f\u0451]", 0.7),
    "shift_jis": ("[\u3041-\u30ff]", 0.2),
    "euc_jp": ("[\u3041-\u30ff]", 0.2),
    "euc_kr": ("[\uac00-\ud7a3]", 0.6),
    "gb18030": ("[\u4e00-\u9fff\u3001\u3002\uff0c]", 0.6),
    "big5": ("[\u4e00-\u9fff\u3001\u3002\uff0c]", 0.6),
}


def _advice(raw: bytes, start: int) -> str:
    """Which encoding text that is not UTF-8 probably has, and how that reads it."""
    sample = raw[max(0, start - 1000) : start + 1000]
    foreign, letters = sum(byte >= 0x80 for byte in sample), sum(map(str.isalpha, sample.decode("ascii", "ignore")))
    for name in _ENCODINGS if foreign > letters else ():
        characters, least = _ENCODINGS[name]
        beyond = re.sub("[\x00-\x7f\ufffd]", "", sample.decode(name, "replace"))
        if len(re.findall(characters, beyond)) > least * len(beyond) and beyond:
            break
    else:
        name = "cp1252" if _reads(sample, "cp1252") else "latin-1"
    line = raw[max(0, start - 20) : start + 20].decode(name, "replace")
    read = " ".join(line.split())
    return f"it is probably {name}, which reads {read!r} there: save it as UTF-8, or train with --encoding {name}"


def _reads(raw: bytes, encoding: str) -> bool:
    try:
        codecs.getincrementaldecoder(encoding)().decode(raw)  # its last character may be cut
    except UnicodeDecodeError:
        return False
    return True


def check_encoding(name: str) -> None:
    """Raise `DataError` if there is no encoding of this name."""
    try:
        "".encode(name)
    except LookupError:
        raise DataError(
            f"--encoding {name} is unknown; encodings are cp1252, latin-1, utf-16-le, gb18030, ..."
        ) from None


def lines(pieces: Iterable[str]) -> Iterator[str]:
    r"""The lines of a text, without the `\n`, `\r\n` or `\r` at their ends."""
    newlines, parts = io.IncrementalNewlineDecoder(None, translate=True), []
    for piece, final in itertools.chain(((piece, False) for piece in pieces), [("", True)]):
        first, *others = newlines.decode(piece, final).split("\n")  # type: ignore[arg-type]  # text, undecoded
        parts.append(first)
        for line in others:
            yield "".join(parts)
            parts = [line]
    if rest := "".join(parts):
        yield rest


def _html(path: str | os.PathLike, encoding: str | None = None) -> Iterator[str]:
    yield html_text("".join(read_text(path, encoding)))


def _epub(path: str | os.PathLike, encoding: str | None = None) -> Iterator[str]:
    for index, page in enumerate(epub_pages(path)):
        text = html_text("".join(_decoded(io.BytesIO(page).read, os.fspath(path), encoding)))
        if text.strip():
            yield "\n" + text if index else text


TEXTS: dict[str, Callable[..., Iterator[str]]] = {
    ".txt": read_text,
    ".md": read_text,
    ".html": _html,
    ".htm": _html,
    ".xhtml": _html,
    ".epub": _epub,
}
_FRAME_START = re.compile(r"\*\*\* ?START OF TH(?:E|IS) PROJECT GUTENBERG[^*]*\*\*\*\s*")
_FRAME_END = re.compile(r"(?:End of (?:the )?Project Gutenberg[^*]{0,500})?\*\*\* ?END OF TH(?:E|IS) PROJECT GUTENBERG")
_FRAME_END_CHARACTERS = 1000  # more than a match has, with the space before it


@dataclass(frozen=True)
class TextFile:
    """The text of a file, in pieces; each iteration reads the file again."""

    path: Path
    encoding: str | None = None  # default: UTF-8
    framed: bool = False  # the text stands between the license of Project Gutenberg, which is left out

    @classmethod
    def of(cls, path: Path, encoding: str | None) -> "TextFile":
        """A file named by the user.

        Raises:
            DataError: It does not contain text.
        """
        suffix = suffix_of(path)
        if suffix in TEXTS and TEXTS[suffix] is not read_text:
            return cls(path, encoding, any(_FRAME_START.search(piece) for piece in cls(path, encoding)))
        with _opened(path) as file:
            head = file.read(_HEAD_BYTES)
        is_known = suffix in TEXTS or encoding is not None or head.startswith(tuple(_MARKS))
        has_controls = re.search(rb"[\x01-\x08\x0e-\x1a]", head)
        if not is_known and (b"\0" in head or (has_controls and not _reads(head, "utf-8"))):
            raise DataError(
                f"{path} is not text. --train_file reads {' '.join([*TEXTS, *TABLES])}, each also .gz, and other files "
                "of text. Convert it first: PDF with pdftotext, documents with pandoc -o FILE.txt, spreadsheets to CSV"
            )
        return cls(path, encoding, _FRAME_START.search(head.decode("latin-1")) is not None)

    def __iter__(self) -> Iterator[str]:
        pieces = TEXTS.get(suffix_of(self.path), read_text)(self.path, self.encoding)
        return _without_frame(pieces) if self.framed else pieces

    @property
    def has_tags(self) -> bool:
        return TEXTS.get(suffix_of(self.path), read_text) is not read_text


def _without_frame(pieces: Iterable[str]) -> Iterator[str]:
    """What stands between the lines of Project Gutenberg that say where a book starts and ends, of each book."""
    text, rest, books = "", iter(pieces), 0
    while True:
        while not (match := _FRAME_START.search(text)) or match.end() == len(text):
            if (piece := next(rest, None)) is None:
                break
            # Of what follows a book, only the end is kept, in which the next one may start.
            text = (text[-_FRAME_END_CHARACTERS:] if books and not match else text) + piece
        if books and not match:
            return
        text = text[match.end() :] if match else text
        while not (match := _FRAME_END.search(text)):
            yield text[:-_FRAME_END_CHARACTERS]
            text = text[-_FRAME_END_CHARACTERS:]
            if (piece := next(rest, None)) is None:
                yield text
                return
            text += piece
        yield text[: match.start()].rstrip() + "\n"
        text, books = text[match.end() :], books + 1


# ---- Tables --------------------------------------------------------------------------------------------------------


def _json_lines(path: Path, encoding: str | None) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines(read_text(path, encoding, _LINES_BYTES)), 1):
        if line.strip():
            yield _row(_parsed(line, f"{path}, line {number}"), f"{path}, line {number}")


def _json(path: Path, encoding: str | None) -> Iterator[dict[str, Any]]:
    try:
        content = json.loads("".join(read_text(path, encoding)))
    except json.JSONDecodeError:
        yield from _json_lines(path, encoding)  # many files of this name have one object per line
        return
    for number, row in enumerate(content if isinstance(content, list) else [content], 1):
        yield _row(row, f"{path}, row {number}")


def _parsed(line: str, place: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{place} is not JSON: {error}") from None


def _row(row: Any, place: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(f"{place}: {json.dumps(row)[:40]!r} is not a JSON object")
    return row


def _csv(path: Path, encoding: str | None, delimiter: str) -> Iterator[dict[str, str]]:
    """All values are text, as they stand in the file; the first row contains the names of the columns."""
    csv.field_size_limit(1 << 30)  # a story is longer than the default of 131,072 characters
    text = lines(read_text(path, encoding, _LINES_BYTES))
    first = next(text, "")
    if delimiter == "," and "," not in first and ";" in first:
        delimiter = ";"  # where the comma is the decimal point
    reader = csv.reader((f"{line}\n" for line in itertools.chain([first], text)), delimiter=delimiter, strict=True)
    try:
        names = next(reader, [])
        for values in filter(None, reader):
            if len(values) != len(names):
                raise DataError(
                    f"{path}, line {reader.line_num}: {len(values)} values, but {len(names)} columns "
                    f"({', '.join(names)[:100]}); a value that contains {delimiter!r} must be quoted"
                )
            yield dict(zip(names, values, strict=True))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}") from error


def _parquet(path: Path, encoding: str | None) -> Iterator[dict[str, Any]]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with _opened(path) as file:
            for batch in ParquetFile(file).iter_batches(batch_size=1024):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a Parquet file: {str(error).splitlines()[0]}") from error


TABLES: dict[str, Callable[[Path, str | None], Iterator[dict[str, Any]]]] = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".csv": partial(_csv, delimiter=","),
    ".tsv": partial(_csv, delimiter="\t"),
    ".parquet": _parquet,
}


@dataclass(frozen=True)
class RowFiles:
    """The rows of tables, as mappings from columns to values. Each iteration reads the files again.

    An iteration raises `DataError` if a row cannot be read; the message names the file and the line or the row.
    """

    paths: list[Path]
    encoding: str | None = None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for path in self.paths:
            yield from TABLES[suffix_of(path)](path, self.encoding)


# ---- Downloads -----------------------------------------------------------------------------------------------------


def download(file_name: str, url: str, expected_sha256: str) -> list[TextFile]:
    """A text from `$GPTLITE_DATA` or the cache, where it is downloaded to if it is in neither.

    Raises:
        DataError: It cannot be downloaded, read or written, or its hash is another one.
    """
    places = [cache_dir() / file_name]
    if folder := os.environ.get("GPTLITE_DATA"):
        places.insert(0, Path(UserPath(folder)) / file_name)
    for path in places:
        if path.is_file():
            check_readable(path, DataError)
            _check_sha256(path, expected_sha256, str(path))
            return [TextFile(path)]
    try:
        with urllib.request.urlopen(url, timeout=20) as response:
            content = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise DataError(
            f"cannot download {url} ({error}); save it as {file_name} in a folder and name the folder in GPTLITE_DATA"
        ) from None
    path = places[-1]
    try:
        with written(path) as partial:
            partial.write_bytes(content)
            _check_sha256(partial, expected_sha256, url)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}; GPTLITE_CACHE names the folder") from error
    return [TextFile(path)]


def _check_sha256(path: Path, expected: str, place: str) -> None:
    if sha256(path) != expected:
        raise DataError(f"{place} is not the expected text: its sha256 differs from {expected}")
