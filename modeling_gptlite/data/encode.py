"""A source as token ids, and the windows or examples that a run takes from them.

source = open_source(SourceArguments(dataset="auto"))
tokenizer = make_tokenizer(source, "char")
text = encode(source, tokenizer)
data = text.cut(context=256, windows_per_step=64, steps=1000)

Text is read twice: first for the tokenizer, the hash and the length of the text, then to be encoded. The ids are cached
under that hash, so another run with the same text and tokenizer reads it once.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tokenization import build_bpe_tokenizer, build_char_tokenizer, build_word_tokenizer, describe_characters
from tokenization.corpus import ENCODING, Encoder, map_ids, tokenizer_state, write_ids

from ..decoding import first_token
from ..files import cache_dir, written
from . import DataError
from .examples import EncodedRow, EvaluationExamples, Examples, ShuffledExamples, encode_rows
from .formats import LANGUAGE_MODELING
from .sources import Scan, Source
from .windows import EvaluationWindows, RandomWindows


Report = Callable[[str], None]


def make_tokenizer(
    source: Source, kind: Literal["char", "bpe", "word"] = "char", vocab_size: int = 1024, report: Report = print
) -> PreTrainedTokenizerFast:
    """A tokenizer for the text of `source`, which is read once.

    Args:
        vocab_size: Number of tokens; a character vocabulary is as large as the text needs.
        report: Called with a line before merges are learned, which takes a while if there is much text.

    Raises:
        DataError: The text is empty or cannot be read, or `vocab_size` is too small.
    """
    try:
        if kind == "char":
            return build_char_tokenizer(source.texts())
        if kind == "bpe":
            report(f"learning a vocabulary of {vocab_size:,} tokens from {source.name}")
        build = {"bpe": build_bpe_tokenizer, "word": build_word_tokenizer}[kind]
        return build(source.texts(), vocab_size)
    except ValueError as error:
        raise DataError(error) from error


# ---- What a run gets -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunData:
    """The data of a run, the same for every kind of source."""

    train: RandomWindows | ShuffledExamples  # the samples of the whole run in order, `steps * windows_per_step` of them
    validation: EvaluationWindows | EvaluationExamples  # the whole validation split
    steps: int  # number of optimizer steps
    # What samples continue by default: a newline, nothing if the text is many documents, or the first validation
    # prompt.
    prompt: str
    facts: dict[str, Any]  # what `run.json` says about the data

    @property
    def tokens_per_step(self) -> int:
        """Of all processes; for examples, the mean."""
        return round(len(self.train) // self.steps * self.train.tokens_per_sample)


def encode(
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    validation_fraction: float = 0.1,
    report: Report = print,
    replacement: bool = False,
    begins: bool = True,
) -> "EncodedText | EncodedExamples":
    """The ids of a source, split by position: the first part trains, the last `validation_fraction` validates.

    Args:
        report: Called with each remark about the text, for example that the tokenizer does not know a character.
        replacement: How the windows of a text are drawn, as for `RandomWindows`.
        begins: They begin with the token that the tokenizer puts before every text, if it does.

    Raises:
        DataError: The text cannot be read or is too short, a character has no token, or the ids cannot be stored.
    """
    if source.format is LANGUAGE_MODELING:
        text = encode_text(source, tokenizer, validation_fraction, report)
        return replace(text, replacement=replacement, begin=text.begin if begins else None)
    encoder = Encoder(tokenizer)
    train, validation = encode_rows(source, encoder, validation_fraction)
    encoded = EncodedExamples(source, tokenizer, train, validation)
    _report_unknown(encoder.unknown, encoded.train_tokens + sum(map(len, validation)), report)
    return encoded


@dataclass(frozen=True)
class EncodedText:
    """A text as two arrays of ids."""

    train_ids: np.ndarray  # `(tokens,)`, memory-mapped
    validation_ids: np.ndarray  # `(tokens,)`, memory-mapped
    training_text: Iterable[str]  # the training split in pieces; each iteration reads it again
    facts: dict[str, Any]  # what `run.json` says about the text
    begin: int | None = None  # the token with which windows begin, if the tokenizer puts one before every text
    replacement: bool = False  # how training windows are drawn, as for `RandomWindows`
    divides = True  # a window can be cut into shorter ones
    examples = None

    @property
    def train_tokens(self) -> int:
        return len(self.train_ids)

    def samples_per_epoch(self, context: int) -> float:
        return len(self.train_ids) / context

    def cut(self, context: int, windows_per_step: int, steps: int, seed: int = 0, report: Report = print) -> RunData:
        """The windows of a run of `steps` steps.

        Args:
            context: Context length, in tokens.
            windows_per_step: Windows in each optimizer step, over all processes.
            seed: Of the order of the training windows.

        Raises:
            DataError: The text is shorter than a window.
        """
        train = RandomWindows(self.train_ids, context, steps * windows_per_step, seed, self.begin, self.replacement)
        validation = EvaluationWindows(self.validation_ids, context, self.begin)
        prompt = "" if "documents" in self.facts else "\n"  # the empty one begins a document
        begun = "" if self.begin is None else f", each after token {self.begin}"
        order = {} if self.replacement else {"windows": f"without replacement{begun}"}
        return RunData(train, validation, steps, prompt, {**self.facts, "context_length": context, **order})


@dataclass(frozen=True)
class EncodedExamples:
    """Prompts with completions, or conversations, as ids of whole rows; `cut` truncates them to a context length."""

    source: Source
    tokenizer: PreTrainedTokenizerBase
    train: list[EncodedRow]
    validation: list[EncodedRow]
    divides = False

    @property
    def train_tokens(self) -> int:
        return sum(map(len, self.train))

    @property
    def examples(self) -> tuple[int, int]:
        """The number of rows to train on, and the tokens of the longest of all rows."""
        return len(self.train), max(map(len, [*self.train, *self.validation]), default=0)

    def samples_per_epoch(self, context: int) -> float:
        return sum(row.fits(context) for row in self.train)

    def cut(self, context: int, windows_per_step: int, steps: int, seed: int = 0, report: Report = print) -> RunData:
        """The examples of a run, as for `EncodedText`.

        If an example is longer than the context, its beginning is cut off; if its last completion alone is, it is left
        out.

        Args:
            report: Called with how many examples that concerns.

        Raises:
            DataError: No example is left in one of the splits.
        """
        train, validation = (Examples.of(rows, context) for rows in (self.train, self.validation))
        for split, name in ((train, "training"), (validation, "validation")):
            if not len(split):
                rows = len(self.train) + len(self.validation)
                lengths = [row.last for row in (self.train if split is train else self.validation)]
                advice = f": --context_length {max(lengths)} would keep them all" if lengths else ""
                raise DataError(
                    f"{self.source.name}: none of {rows:,} rows is left for {name}; {split.skipped:,} are too long"
                    f"{advice}"
                )
        if truncated := train.truncated + validation.truncated:
            report(
                f"{truncated:,} examples are longer than the context length of {context}: their beginning is cut off"
            )
        if skipped := train.skipped + validation.skipped:
            report(f"{skipped:,} examples are left out: their completion alone is longer than the context length")
        facts = {
            "name": self.source.name,
            "sha256": self.source.scan("").sha256,
            "examples": self.source.format.name,
            "train_examples": len(train),
            "validation_examples": len(validation),
            "train_tokens": len(train.ids),
            "validation_tokens": len(validation.ids),
            "validation_targets": validation.targets,
            "validation_characters": validation.count_characters(self.tokenizer),
            "context_length": context,
            **_about(self.source),
        }
        _check_validation(facts)
        prompt = str(self.tokenizer.decode(validation.prompt(0)))
        if first_token(self.tokenizer) is not None:  # it is put before the prompt again
            prompt = prompt.removeprefix(str(self.tokenizer.bos_token))
        samples = ShuffledExamples(train, steps * windows_per_step, seed)
        return RunData(samples, EvaluationExamples(validation), steps, prompt, facts)


def _check_validation(facts: dict[str, Any]) -> None:
    if facts["validation_tokens"] and not facts["validation_characters"]:
        raise DataError(f"the end of {facts['name']}, on which a model would be evaluated, has no characters")


def _about(source: Source) -> dict[str, Any]:
    return {name: getattr(source, name) for name in ("hub_dataset", "language", "license")}


def _report_unknown(unknown: Counter[str], tokens: int, report: Report) -> None:
    if unknown:
        share = unknown.total() / tokens
        report(f"not in the vocabulary, {share:.2%} of the tokens: {describe_characters(unknown)}")


# ---- Text ----------------------------------------------------------------------------------------------------------


def encode_text(
    source: Source, tokenizer: PreTrainedTokenizerBase, validation_fraction: float = 0.1, report: Report = print
) -> EncodedText:
    """`encode` for text. The ids are cached on disk, under a hash of text, tokenizer and position of the cut.

    Raises:
        DataError: As for `encode`, or the source contains examples.
    """
    if source.format is not LANGUAGE_MODELING:
        raise DataError(f"{source.name} contains {source.format.name}, not text; name a column with --text_column")
    separator = tokenizer.eos_token or ""
    scan = source.scan(separator)
    cut = int(scan.characters * (1 - validation_fraction))
    try:
        train_ids, validation_ids, note = _packed_ids(source, tokenizer, scan, cut)
    except DataError:
        raise
    except OSError as error:
        raise DataError(
            f"cannot store the ids in {cache_dir()}: {error}; set GPTLITE_CACHE to use another folder"
        ) from error
    except ValueError as error:  # a character has no id, and the tokenizer no unknown token
        raise DataError(error) from error
    _report_unknown(Counter(note["unknown"]), len(train_ids) + len(validation_ids), report)
    cut = note.get("train_characters", cut)
    facts = {
        "name": source.name,
        "sha256": scan.sha256,
        "train_characters": cut,
        "validation_characters": note.get("validation_characters", scan.characters - cut),
        "train_tokens": len(train_ids),
        "validation_tokens": len(validation_ids),
        "validation_targets": len(validation_ids) - 1,
        **_about(source),
    }
    _check_validation(facts)
    if source.has_short_texts and separator and scan.documents > 1:
        facts["documents"] = scan.documents
    return EncodedText(train_ids, validation_ids, TextSlice(source, separator, 0, cut), facts, first_token(tokenizer))


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
    source: Source, tokenizer: PreTrainedTokenizerBase, scan: Scan, cut: int
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """The ids of both splits from the cache, and what is noted beside them.

    If they are not there, both are encoded in one reading of the text. One file holds both, so that no run finds one
    without the other. A separator at the cut belongs to training, and separators do not count as characters that
    validate.
    """
    encoder, separator = Encoder(tokenizer), scan.separator if scan.documents > 1 else ""
    about: list[Any] = [ENCODING, tokenizer_state(tokenizer), tokenizer.eos_token, scan.sha256, cut]
    if separator:
        about.append("separators are whole")  # a version before cut them in two
    key = hashlib.blake2b(json.dumps(about).encode(), digest_size=16).hexdigest()
    path, note = cache_dir() / f"{key}.{encoder.dtype.name}", cache_dir() / f"{key}.json"
    if not (path.exists() and note.exists()):
        before, after = _divided(joined(source, separator), cut, separator)
        counts: Counter[str] = Counter()

        def counted(pieces: Iterator[str], name: str, without: str = "") -> Iterator[str]:
            for piece in pieces:
                counts[name] += len(piece) if piece != without else 0
                yield piece

        def arrays() -> Iterator[np.ndarray]:
            for ids in encoder.arrays(counted(before, "train_characters")):
                counts["train_tokens"] += len(ids)
                yield ids
            yield from encoder.arrays(counted(after, "validation_characters", separator))

        write_ids(path, arrays())
        with written(note) as partial:
            partial.write_text(json.dumps({"train_tokens": 0, **counts, "unknown": encoder.unknown}), encoding="utf-8")
    facts = json.loads(note.read_text(encoding="utf-8"))
    ids, end = map_ids(path, encoder.dtype), facts["train_tokens"]
    return ids[:end], ids[end:], facts


def _divided(pieces: Iterator[str], characters: int, separator: str) -> tuple[Iterator[str], Iterator[str]]:
    """The text before and after a number of characters, in pieces; a separator there belongs to the first part.

    The second part begins where the first one ended.
    """
    rest = []

    def first() -> Iterator[str]:
        left = characters
        for piece in pieces:
            if 0 < left < len(piece) and piece == separator:
                left = len(piece)
            yield piece[:left]
            if len(piece) >= left:
                rest.append(piece[left:])
                return
            left -= len(piece)

    def second() -> Iterator[str]:
        yield from rest
        yield from pieces

    return first(), second()
