"""From a source to what the trainer needs: windows of its two splits, their number, and the facts about the text.

source = open_source(SourceArguments(dataset="auto"))
tokenizer = make_tokenizer(source, "char")
prepared = prepare(source, tokenizer, context=256, windows_per_step=64, max_steps=1000)

Text is read twice: first for the tokenizer, the hash and the length of the text, then to be encoded. The ids are cached
under that hash, so another run with the same text and tokenizer reads it once.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tokenization import build_bpe_tokenizer, build_char_tokenizer, build_word_tokenizer, describe_characters
from tokenization.corpus import Encoder, map_ids, tokenizer_state, write_ids

from . import DataError
from .examples import EvaluationExamples, ShuffledExamples, encode_examples
from .files import cache_dir
from .formats import LANGUAGE_MODELING
from .sources import Source
from .windows import EvaluationWindows, RandomWindows


Report = Callable[[str], None]
Train = RandomWindows | ShuffledExamples
Validation = EvaluationWindows | EvaluationExamples


@dataclass
class Prepared:
    """The data of a run, the same for every kind of source.

    Attributes:
        train: The samples of the whole run in order, `steps * windows_per_step` of them.
        validation: The whole validation split.
        steps: Number of optimizer steps.
        prompt: What samples continue by default: a newline, or the first validation prompt.
        facts: What `run.json` says about the data.
    """

    train: Train
    validation: Validation
    steps: int
    prompt: str
    facts: dict[str, Any]

    @property
    def tokens_per_step(self) -> int:
        """Of all processes; for examples, the mean."""
        return round(len(self.train) // self.steps * self.train.tokens_per_sample)


@dataclass
class Splits:
    """A text as two splits of ids; the last part of the text validates.

    Attributes:
        train_ids: `(tokens,)`, memory-mapped.
        validation_ids: `(tokens,)`, memory-mapped.
        training_text: The training split in pieces; each iteration reads it again.
        facts: What `run.json` says about the text.
    """

    train_ids: np.ndarray
    validation_ids: np.ndarray
    training_text: Iterable[str]
    facts: dict[str, Any]


def make_tokenizer(
    source: Source, kind: Literal["char", "bpe", "word"] = "char", vocab_size: int = 1024
) -> PreTrainedTokenizerFast:
    """A tokenizer for the text of `source`, which is read once.

    Args:
        vocab_size: Number of tokens; a character vocabulary is as large as the text needs.

    Raises:
        DataError: The text is empty or cannot be read, or `vocab_size` is too small.
    """
    try:
        if kind == "char":
            return build_char_tokenizer(source.texts())
        build = {"bpe": build_bpe_tokenizer, "word": build_word_tokenizer}[kind]
        return build(source.texts(), vocab_size)
    except ValueError as error:
        raise DataError(error) from error


def prepare(
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    context: int,
    *,
    windows_per_step: int,
    max_steps: int = -1,
    epochs: float = 1.0,
    seed: int = 0,
    validation_fraction: float = 0.1,
    report: Report = print,
) -> Prepared:
    """Encode a source and cut it into the windows, or examples, of a run.

    Args:
        context: Context length, in tokens.
        windows_per_step: Windows, or examples, in each optimizer step.
        max_steps: Number of optimizer steps; at most 0: as many as `epochs` need.
        epochs: Passes over the training split.
        seed: Of the order of the training windows.
        validation_fraction: Fraction of the text, or of the examples, at the end, that validates.
        report: Called with each remark about the text, for example that the tokenizer does not know a character.

    Raises:
        DataError: The text cannot be read or is too short, or the ids cannot be stored.
    """

    encode = _encode_text if source.format is LANGUAGE_MODELING else _encode_examples
    encoded = encode(source, tokenizer, context, seed, validation_fraction, report)
    steps = max_steps if max_steps > 0 else max(1, round(epochs * encoded.samples / windows_per_step))
    about = {name: getattr(source, name) for name in ("hub_dataset", "language", "license")}
    train, validation = encoded.windows(steps * windows_per_step)
    return Prepared(train, validation, steps, encoded.prompt, {**encoded.facts, "context_length": context, **about})


@dataclass
class _Encoded:
    """A source as ids, before the number of steps is known, which follows from the samples in one epoch.

    `windows` returns the training samples, as many as it is called with, and the validation split.
    """

    samples: float
    windows: Callable[[int], tuple[Train, Validation]]
    prompt: str
    facts: dict[str, Any]


def _encode_text(
    source: Source, tokenizer: PreTrainedTokenizerBase, context: int, seed: int, fraction: float, report: Report
) -> _Encoded:
    splits = encode_splits(source, tokenizer, fraction, report)

    def windows(samples: int) -> tuple[Train, Validation]:
        train = RandomWindows(splits.train_ids, context, samples, seed)
        return train, EvaluationWindows(splits.validation_ids, context)

    return _Encoded(len(splits.train_ids) / context, windows, "\n", splits.facts)


def _encode_examples(
    source: Source, tokenizer: PreTrainedTokenizerBase, context: int, seed: int, fraction: float, report: Report
) -> _Encoded:
    encoder = Encoder(tokenizer)
    train, validation = encode_examples(source, encoder, context, fraction)
    _report_unknown(encoder.unknown, len(train.ids) + len(validation.ids), report)
    if truncated := train.truncated + validation.truncated:
        report(f"{truncated:,} examples are longer than the context length of {context}: their beginning is cut off")
    if skipped := train.skipped + validation.skipped:
        report(f"{skipped:,} examples are left out: their completion alone is longer than the context length")
    facts = {
        "name": source.name,
        "sha256": source.scan("").sha256,
        "examples": source.format.name,
        "train_examples": len(train),
        "validation_examples": len(validation),
        "train_tokens": len(train.ids),
        "validation_tokens": len(validation.ids),
        "validation_targets": validation.targets,
        "validation_characters": validation.characters,
    }

    def windows(samples: int) -> tuple[Train, Validation]:
        return ShuffledExamples(train, samples, seed), EvaluationExamples(validation)

    return _Encoded(len(train), windows, str(tokenizer.decode(validation.prompt(0))), facts)


# ---- Text ----------------------------------------------------------------------------------------------------------


def encode_splits(
    source: Source, tokenizer: PreTrainedTokenizerBase, validation_fraction: float = 0.1, report: Report = print
) -> Splits:
    """The ids of the first characters of a text, for training, and of the last `validation_fraction`, for validation.

    The ids are cached on disk, under a hash of the text, the tokenizer and the position of the cut.

    Raises:
        DataError: The source contains examples, a character has no token, or the ids cannot be stored.
    """
    if source.format is not LANGUAGE_MODELING:
        raise DataError(f"{source.name} contains {source.format.name}, not text; name a column with --text_column")
    separator = tokenizer.eos_token or ""
    scan = source.scan(separator)
    cut = int(scan.characters * (1 - validation_fraction))
    try:
        train_ids, validation_ids, unknown = _packed_ids(source, tokenizer, scan.sha256, cut)
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"cannot store the ids in {cache_dir()}: {error}; GPTLITE_CACHE names the folder") from error
    except ValueError as error:  # a character has no id, and the tokenizer no unknown token
        raise DataError(error) from error
    _report_unknown(unknown, len(train_ids) + len(validation_ids), report)
    facts = {
        "name": source.name,
        "sha256": scan.sha256,
        "train_characters": cut,
        "validation_characters": scan.characters - cut,
        "train_tokens": len(train_ids),
        "validation_tokens": len(validation_ids),
        "validation_targets": len(validation_ids) - 1,
    }
    return Splits(train_ids, validation_ids, TextSlice(source, separator, 0, cut), facts)


@dataclass(frozen=True)
class TextSlice:
    """The characters `start` to `stop` of a source, in pieces; each iteration reads them again."""

    source: Source
    separator: str
    start: int
    stop: int

    def __iter__(self) -> Iterator[str]:
        position = 0
        for piece in joined(self.source, self.separator):
            part = piece[max(0, self.start - position) : max(0, self.stop - position)]
            if part:
                yield part
            position += len(piece)
            if position >= self.stop:
                return


def joined(source: Source, separator: str = "") -> Iterator[str]:
    """The text of all documents, in pieces, with `separator` between documents."""
    for index, document in enumerate(source.documents):
        if index and separator:
            yield separator
        yield from document


def _packed_ids(
    source: Source, tokenizer: PreTrainedTokenizerBase, sha256: str, cut: int
) -> tuple[np.ndarray, np.ndarray, Counter[str]]:
    """The ids of both splits from the cache; if they are not there, both are encoded in one reading of the text."""
    encoder = Encoder(tokenizer)
    about = [tokenizer_state(tokenizer), tokenizer.eos_token, sha256, cut]
    key = hashlib.blake2b(json.dumps(about).encode(), digest_size=16).hexdigest()
    train, validation = (cache_dir() / f"{key}.{split}.{encoder.dtype.name}" for split in ("train", "validation"))
    note = cache_dir() / f"{key}.unknown.json"  # written last
    if all(path.exists() for path in (train, validation, note)):
        unknown = Counter(json.loads(note.read_text(encoding="utf-8")))
    else:
        pieces = _Pieces(joined(source, tokenizer.eos_token or ""))
        write_ids(train, encoder.arrays(pieces.take(cut)))
        write_ids(validation, encoder.arrays(pieces.rest()))
        unknown = encoder.unknown
        _write_atomically(note, json.dumps(unknown))
    return map_ids(train, encoder.dtype), map_ids(validation, encoder.dtype), unknown


class _Pieces:
    """Pieces of text that are read once, and cut at a position."""

    def __init__(self, pieces: Iterator[str]):
        self._pieces, self._left = pieces, ""

    def take(self, characters: int) -> Iterator[str]:
        for piece in self._pieces:
            part, self._left = piece[:characters], piece[characters:]
            characters -= len(part)
            yield part
            if self._left or not characters:
                return

    def rest(self) -> Iterator[str]:
        yield self._left
        yield from self._pieces


def _write_atomically(path: Path, text: str) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _report_unknown(unknown: Counter[str], tokens: int, report: Report) -> None:
    if unknown:
        share = unknown.total() / tokens
        report(f"not in the vocabulary, {share:.2%} of the tokens: {describe_characters(unknown)}")
