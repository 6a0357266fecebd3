"""Where text comes from, and how its ids reach the model: whole batches of windows, no per-sample Python.

source = load_source("tinyshakespeare")
train = RandomWindows(ids, context=256, samples=1000 * 64, seed=0)
"""

import codecs
import hashlib
import http.client
import os
import sys
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset


TINYSHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
TINYSHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
BUILT_IN_SOURCES = ("auto", "tinyshakespeare", "python-docs")
IGNORED = -100  # the label that no loss counts
_PIECE_BYTES = 1 << 22


class DataError(ValueError):
    """The data that was asked for cannot be had; the message says why and what to do."""


def cache_dir() -> Path:
    """Where downloads and packed ids are kept: `$GPTLITE_CACHE`, else `~/.cache/gptlite`."""
    return Path(os.environ.get("GPTLITE_CACHE") or Path.home() / ".cache" / "gptlite")


# ---- Text ----------------------------------------------------------------------------------------------------------


@dataclass
class TextSource:
    """Text that can be read again and again, in pieces, without ever holding it whole.

    Attributes:
        name: What reports call it.
        open: Starts a new reading; gives one iterator of text pieces per document.
    """

    name: str
    open: Callable[[], Iterable[Iterable[str]]]

    def pieces(self, separator: str = "") -> Iterator[str]:
        """All documents one after the other, `separator` between them."""
        for index, document in enumerate(self.open()):
            if index and separator:
                yield separator
            yield from document


@dataclass
class TextSlice:
    """The characters `start` to `stop` of a source; can be iterated again and again.

    `sha256` is that of the whole source in UTF-8.
    """

    source: TextSource
    separator: str
    sha256: str
    start: int
    stop: int

    def __iter__(self) -> Iterator[str]:
        position = 0
        for piece in self.source.pieces(self.separator):
            part = piece[max(0, self.start - position) : max(0, self.stop - position)]
            if part:
                yield part
            position += len(piece)
            if position >= self.stop:
                return

    def __len__(self) -> int:
        return self.stop - self.start


def split_source(source: TextSource, separator: str, validation_fraction: float) -> tuple[TextSlice, TextSlice]:
    """The source cut once, by position: the first characters train, the last `validation_fraction` validate."""
    characters, digest = 0, hashlib.sha256()
    for piece in source.pieces(separator):
        characters += len(piece)
        digest.update(piece.encode("utf-8", "surrogatepass"))
    cut = int(characters * (1 - validation_fraction))
    whole = source, separator, digest.hexdigest()
    return TextSlice(*whole, 0, cut), TextSlice(*whole, cut, characters)


def load_source(name: str, on_fallback: Callable[[str], None] = print) -> TextSource:
    """A built-in source: `tinyshakespeare`, `python-docs`, or `auto`: the first, or without a network the second.

    Args:
        on_fallback: Is told, in one sentence, when `auto` has to take `python-docs`.

    Raises:
        DataError: tiny Shakespeare is neither there nor can be downloaded, or is not the real one.
    """
    if name == "python-docs":
        return TextSource(name, lambda: [[_python_docs()]])
    if name == "tinyshakespeare":
        path = _find_tinyshakespeare()
        return TextSource(name, lambda: [read_text(path)])
    if name == "auto":
        try:
            return load_source("tinyshakespeare")
        except DataError as error:
            on_fallback(f"training on python-docs, NOT on tiny Shakespeare: {error}")
            return load_source("python-docs")
    raise DataError(f"unknown source {name!r}; built in: {', '.join(BUILT_IN_SOURCES)}")


def load_files(paths: Iterable[str | os.PathLike]) -> TextSource:
    """UTF-8 text files, each one document; a folder stands for the `.txt` files in it, by name.

    Raises:
        DataError: a path does not exist, a folder holds no `.txt` file, or a file is empty or not UTF-8.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found = sorted(path.glob("*.txt"))
            if not found:
                raise DataError(f"no .txt file in the folder {path}")
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise DataError(f"no such file: {path}")
    for path in files:
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty")
    return TextSource(" ".join(path.name for path in files), lambda: map(read_text, files))


def load_rows(name: str, config: str | None, streaming: bool):
    """The train split of a data set from the Hub or a local folder.

    Raises:
        DataError: it cannot be had (no network, no such name).
    """
    import datasets

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(name, config, split="train", streaming=streaming)
        next(iter(rows), None)  # a streamed one is read only now
        return rows
    except Exception as error:  # the library raises a dozen kinds, most of them about the network
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"cannot load the data set {name!r}: {reason}") from error


def load_dataset_source(name: str, config: str | None, text_column: str, streaming: bool) -> TextSource:
    """The train split of a data set from the Hub or a local folder, each row one document.

    Raises:
        DataError: the data set cannot be had, or has no such column.
    """
    rows = load_rows(name, config, streaming)
    return text_source(name, column_names(rows), rows.select_columns, text_column)


def column_names(rows) -> list[str]:
    return rows.column_names or list(next(iter(rows)))  # a streamed data set may not know before it is read


def text_source(
    name: str, columns: list[str], select: Callable[[list[str]], Iterable[dict]], text_column: str
) -> TextSource:
    """Rows of which one column is text, each one document.

    Args:
        select: Starts a new reading of the rows, of these columns alone.

    Raises:
        DataError: there is no such column; and while it is read, where a row holds no text.
    """
    if text_column not in columns:
        raise DataError(f"the data set {name!r} has no column {text_column!r}; its columns: {', '.join(columns)}")

    def documents() -> Iterator[list[str]]:
        for row in select([text_column]):
            text = row.get(text_column)
            if not isinstance(text, str):
                raise DataError(f"the column {text_column!r} of {name!r} holds {text!r}, which is not text")
            yield [text]

    return TextSource(name, documents)


def read_text(path: str | os.PathLike) -> Iterator[str]:
    """The text of a UTF-8 file in pieces, line endings untouched.

    Raises:
        DataError: it is not UTF-8; the message names the byte offset.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0
    with open(path, "rb") as file:
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


def _find_tinyshakespeare() -> Path:
    places = [cache_dir() / "tinyshakespeare.txt"]
    if folder := os.environ.get("GPTLITE_DATA"):
        places.insert(0, Path(folder) / "tinyshakespeare.txt")
    for path in places:
        if path.is_file():
            if hashlib.sha256(path.read_bytes()).hexdigest() != TINYSHAKESPEARE_SHA256:
                raise DataError(f"{path} is not tiny Shakespeare: its sha256 differs")
            return path
    return _download_tinyshakespeare(places[-1])


def _download_tinyshakespeare(path: Path) -> Path:
    try:
        with urllib.request.urlopen(TINYSHAKESPEARE_URL, timeout=20) as response:
            content = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise DataError(
            f"tiny Shakespeare cannot be downloaded ({error}); "
            "put tinyshakespeare.txt into a folder and name it in GPTLITE_DATA"
        ) from None
    if hashlib.sha256(content).hexdigest() != TINYSHAKESPEARE_SHA256:
        raise DataError(f"what {TINYSHAKESPEARE_URL} serves is not tiny Shakespeare: its sha256 differs")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_bytes(content)
    partial.replace(path)
    return path


def _python_docs() -> str:
    """The language reference inside every Python interpreter: about 0.5 MB of English."""
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))


# ---- Windows -------------------------------------------------------------------------------------------------------


class RandomWindows(Dataset):
    """Training windows of `context + 1` ids at random offsets; sample i depends on (`seed`, i) alone.

    The whole run is one pass over `samples` samples in order, so a run that is resumed sees what it would have seen.
    Give it to a data loader with a sequential sampler and `whole_batch`.

    Args:
        ids: `(tokens,)` packed ids, in memory or mapped.
        context: Tokens that the model sees at once.
        samples: Number of windows in the run: steps x batch size.

    Raises:
        DataError: there are not `context + 1` ids.
    """

    def __init__(self, ids: np.ndarray, context: int, samples: int, seed: int):
        if len(ids) <= context:
            raise DataError(
                f"the training text has {len(ids):,} tokens; one window of the model's context takes {context + 1:,}"
            )
        self.ids, self.context, self.samples, self.seed = ids, context, samples, seed
        self.tokens_per_sample = context
        self._span = np.arange(context + 1)

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return single(self, index)

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        starts = random_numbers(self.seed, np.asarray(indices)) % np.uint64(len(self.ids) - self.context)
        return _batch(self.ids[starts.astype(np.int64)[:, None] + self._span].astype(np.int64))


class EvaluationWindows(Dataset):
    """The whole split in non-overlapping windows, every target counted once; the last window is filled with -100.

    Raises:
        DataError: there are fewer than two ids, so nothing to predict.
    """

    def __init__(self, ids: np.ndarray, context: int):
        if len(ids) < 2:
            raise DataError(f"the validation text has {len(ids)} tokens; at least 2 are needed")
        self.ids, self.context = ids, context

    def __len__(self) -> int:
        return -(-(len(self.ids) - 1) // self.context)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return single(self, index)

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        windows = np.full((len(indices), self.context + 1), IGNORED, dtype=np.int64)
        for row, index in enumerate(indices):
            window = self.ids[index * self.context : (index + 1) * self.context + 1]
            windows[row, : len(window)] = window
        return _batch(windows)


def single(windows: Dataset, index: int) -> dict[str, torch.Tensor]:
    if not 0 <= index < len(windows):
        raise IndexError(index)  # ends a `for` over the windows
    return {name: tensor[0] for name, tensor in windows.__getitems__([index]).items()}


def whole_batch(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The collate function for data sets that slice a whole batch at once."""
    return batch


def _batch(windows: np.ndarray) -> dict[str, torch.Tensor]:
    """`(batch, context + 1)` ids to inputs and targets; both label names, so that the Trainer counts the targets."""
    windows = torch.from_numpy(windows)
    targets = windows[:, 1:].contiguous()
    return {"input_ids": windows[:, :-1].clamp(min=0), "labels": targets, "shift_labels": targets}


def random_numbers(seed: int, indices: np.ndarray) -> np.ndarray:
    """SplitMix64 (Steele et al., 2014) of the sample's number: random access to a random sequence."""
    with np.errstate(over="ignore"):
        golden = np.uint64(0x9E3779B97F4A7C15)
        x = (indices.astype(np.uint64) + np.uint64(1)) * golden + np.uint64(seed) * np.uint64(0xD1342543DE82EF95)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
