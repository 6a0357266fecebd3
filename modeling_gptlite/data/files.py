"""Reading files: text as it is, JSONL line by line, folders, downloads.

for piece in read_text("my_book.txt"):
    ...
"""

import codecs
import http.client
import json
import os
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import UserPath, cache_dir, check_readable, sha256, written
from . import DataError


_PIECE_BYTES = 1 << 22


def find_files(paths: Iterable[str | os.PathLike]) -> list[Path]:
    """The files that `paths` name: a folder stands for the `.txt` files in it, sorted by name.

    Raises:
        DataError: A path does not exist, is a pipe or a device, is empty or may not be read; or a folder contains no
            `.txt` file.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise DataError(f"no such file: {path}")
        files += _text_files(path) if path.is_dir() else [_regular_file(path)]
    for path in files:
        check_readable(path, DataError)
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty")
    return files


def _regular_file(path: Path) -> Path:
    if not path.is_file() or str(path).startswith(("/dev/stdin", "/dev/fd/")):
        raise DataError(f"{path} is a pipe or a device, which is read only once; save it to a file and name that")
    return path


def is_jsonl(path: str | os.PathLike) -> bool:
    return Path(path).suffix.lower() == ".jsonl"


def _text_files(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".txt" and path.is_file())
    if not found:
        raise DataError(f"no .txt file in the folder {folder}")
    return found


@dataclass(frozen=True)
class TextFile:
    """The text of a file, in pieces; each iteration reads the file again."""

    path: Path

    def __iter__(self) -> Iterator[str]:
        return read_text(self.path)


def read_text(path: str | os.PathLike) -> Iterator[str]:
    """The text of a UTF-8 file in pieces, line endings unchanged.

    Raises:
        DataError: The file is not UTF-8; the message names the offset of the first wrong byte.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0
    with open(path, "rb", buffering=0) as file:
        while True:
            raw = file.read(_PIECE_BYTES)
            pending = len(decoder.getstate()[0])  # bytes of a character that the last piece cut in two
            try:
                text = decoder.decode(raw, final=not raw)
            except UnicodeDecodeError as error:
                position = offset - pending + error.start
                byte = error.object[error.start]
                raise DataError(f"{os.fspath(path)} is not UTF-8: byte 0x{byte:02x} at offset {position}") from None
            offset += len(raw)
            if text:
                yield text
            if not raw:
                return


@dataclass(frozen=True)
class RowFiles:
    """The JSON objects of JSONL files, one per line; empty lines are skipped. Each iteration reads the files again.

    An iteration raises `DataError` if a line is not a JSON object; the message names file and line.
    """

    paths: list[Path]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for path in self.paths:
            with open(path, encoding="utf-8") as file:
                try:
                    for number, line in enumerate(file, 1):
                        if line.strip():
                            yield _row(line, f"{path}, line {number}")
                except UnicodeDecodeError as error:
                    raise DataError(f"{path} is not UTF-8: {error}") from None


def _row(line: str, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{place} is not JSON: {error}") from None
    if not isinstance(row, dict):
        raise DataError(f"{place}: {line.strip()[:40]!r} is not a JSON object")
    return row


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
