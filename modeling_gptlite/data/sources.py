"""Where text comes from: files, datasets, and the built-in texts of the table `SOURCES`.

source = open_source(SourceArguments(dataset="tinyshakespeare"))
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from tokenization.builders import END_OF_TEXT

from ..errors import setting
from ..files import UserPath
from . import DataError
from .files import TABLES, RowFiles, TextFile, check_encoding, download, find_files, lines, suffix_of
from .formats import CHAT_TEMPLATE, EXAMPLES, LANGUAGE_MODELING, DatasetFormat, Part


NO_COLUMNS = "--text_column is for tables and datasets, and this is text; leave it out"


# ---- Sources -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scan:
    """What a complete reading of a source found; `sha256` and, for text, `characters` include the separators."""

    separator: str
    documents: int
    characters: int
    sha256: str


@dataclass
class Source:
    """Documents that can be read again and again, and are never all in memory.

    Attributes:
        name: Of the files, dataset or built-in text.
        documents: Each iteration over them is a new reading. Pieces of text for `LANGUAGE_MODELING`, else rows.
        format: What a document contains.
        language, license: Of a built-in text.
        hub_dataset: Repository id, if the text comes from the Hub.
        chat_template: Jinja template that turns messages into text.
        has_short_texts: The documents are rows or lines: a model of them ends its texts where it predicts their end.
    """

    name: str
    documents: Iterable[Any]
    format: DatasetFormat = LANGUAGE_MODELING
    language: str | None = None
    license: str | None = None
    hub_dataset: str | None = None
    chat_template: str = CHAT_TEMPLATE
    has_short_texts: bool = False
    special_tokens: Mapping[str, str] = field(default_factory=dict, repr=False)  # of the template
    _scan: Scan | None = field(default=None, init=False, repr=False)

    def texts(self) -> Iterator[str]:
        """The text that a tokenizer has to know, in pieces; conversations have the special tokens of their template.

        Raises:
            DataError: A document cannot be read, or is not of this format.
        """
        yield from self._read(END_OF_TEXT)

    def scan(self, separator: str) -> Scan:
        """Length and hash of the documents with `separator` between them; reads them unless `texts` has done so."""
        known = self._scan
        if known is None or (self.format is LANGUAGE_MODELING and known.separator != separator and known.documents > 1):
            for _ in self._read(separator):
                pass
        assert self._scan is not None
        return self._scan

    def _read(self, separator: str) -> Iterator[str]:
        """All texts; remembers at the end what the reading found, so that no other one is needed for that."""
        digest, documents, characters = hashlib.sha256(), 0, 0
        for documents, document in enumerate(self.documents, 1):
            if self.format is not LANGUAGE_MODELING:
                row = json.dumps(document, sort_keys=True, ensure_ascii=False, default=str)
                digest.update(self._utf8(row, documents))
            elif documents > 1:
                digest.update(separator.encode())
                characters += len(separator)
            for text, _ in self.parts(document, documents):
                if self.format is LANGUAGE_MODELING:
                    digest.update(self._utf8(text, documents))
                characters += len(text)
                yield text
        self._scan = Scan(separator, documents, characters, digest.hexdigest())

    def _utf8(self, text: str, number: int) -> bytes:
        try:
            return text.encode()
        except UnicodeEncodeError as error:  # JSON can hold half of a surrogate pair, such as \ud83c
            raise DataError(f"{self.name}, row {number}: {error}; remove that character") from None

    def parts(self, document: Any, number: int, special_tokens: Mapping[str, str] | None = None) -> Iterable[Part]:
        """The text of document `number`, counted from 1, in order; and for each part whether it is to be learnt.

        Raises:
            DataError: The document is not of this format.
        """
        try:
            return self.format.parts(document, self.chat_template, special_tokens or self.special_tokens)
        except Exception as error:  # a chat template can raise anything
            reason = f"there is no {error}" if isinstance(error, KeyError) else str(error)
            raise DataError(f"{self.name}, row {number}: {reason}") from error

    def share_template(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Conversations: use the tokenizer's chat template; if it has none, set this one, which is saved with it."""
        if "messages" not in self.format.columns:
            return
        if tokenizer.chat_template:
            try:
                self.chat_template = tokenizer.get_chat_template()
            except ValueError as error:  # it has several, and none is the default
                raise DataError(f"{self.name}: {error}") from error
            self.special_tokens = tokenizer.special_tokens_map
            return
        tokenizer.chat_template = self.chat_template
        tokenizer.response_template = {  # with which servers parse a reply
            "defaults": {"role": "assistant", "content": ""},  # a reply may be empty
            "start_anchor": "\nassistant:",
            "fields": {"content": {"close": tokenizer.eos_token, "content": "text"}},
        }


@dataclass(frozen=True)
class Rows:
    """The rows of a dataset, or the text of one of its columns as documents; each iteration reads them again."""

    name: str
    rows: Iterable[dict[str, Any]]
    text_column: str | None

    def __iter__(self) -> Iterator[Any]:
        try:
            for number, row in enumerate(self.rows, 1):
                if self.text_column is None:
                    yield row
                elif isinstance(text := row.get(self.text_column), str):
                    yield [text]
                else:
                    place = f"{self.name}, row {number}"
                    raise DataError(f"{place}: the column {self.text_column!r} contains {text!r}, which is not text")
        except DataError:
            raise
        except Exception as error:  # `datasets` raises a dozen types
            raise DataError(f"cannot read the dataset {self.name!r}: {_reason(error)}") from error


@dataclass(frozen=True)
class Lines:
    """Each line of text files as a document, without those that are empty; each iteration reads them again."""

    files: list[TextFile]

    def __iter__(self) -> Iterator[list[str]]:
        for file in self.files:
            for line in lines(file):
                if line.strip():
                    yield [line]


# ---- Built-in texts ------------------------------------------------------------------------------------------------


def python_docs() -> list[list[str]]:
    """The language reference that every Python interpreter contains: about 0.5 MB of English."""
    from pydoc_data.topics import topics

    return [["\n".join(topics[name] for name in sorted(topics))]]


@dataclass(frozen=True)
class BuiltIn:
    """A text that can be named in `--dataset`."""

    # Returns its documents, each an iterable of pieces of text; all can be iterated again and again. Raises `DataError`
    # if the text is not available.
    open: Callable[[], Iterable[Iterable[str]]]
    language: str  # for the model card, `en` for example
    license: str  # for the model card, of a model that is trained on it


TINYSHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
TINYSHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"

# In order of preference: `auto` is the first that is available.
SOURCES: dict[str, BuiltIn] = {
    "tinyshakespeare": BuiltIn(
        partial(download, "tinyshakespeare.txt", TINYSHAKESPEARE_URL, TINYSHAKESPEARE_SHA256), "en", "mit"
    ),
    "python-docs": BuiltIn(python_docs, "en", "mit"),
}
AUTO = "auto"


# ---- Opening -------------------------------------------------------------------------------------------------------


@dataclass
class SourceArguments:
    """The text: files, a dataset, or a built-in text."""

    train_file: list[UserPath] | None = setting(
        None,
        "Text (.txt .md .html .epub ...), or tables (.csv .tsv .parquet .json .jsonl); all but .epub also .gz; or "
        "folders of them.",
        nargs="+",
        action="extend",
    )
    dataset: UserPath | None = setting(
        None,
        f"Built in: {', '.join([AUTO, *SOURCES])}; or a dataset's Hub name or folder. "
        f"Default: {AUTO}, unless --train_file is given.",
    )
    dataset_config: str | None = setting(None, "Configuration of the dataset.")
    text_column: str | None = setting(None, "Column of text. Default: text, if it exists.")
    documents: Literal["files", "lines"] = setting("files", "A text file's documents: itself, or its lines.")
    encoding: str | None = setting(None, "Of the files. Default: utf-8.")
    streaming: bool = setting(False, "Read the dataset row by row, without a copy.")
    validation_fraction: float = setting(0.1, "Fraction of the text, at its end, that is used for validation only.")


def open_source(args: SourceArguments, report: Callable[[str], None] = print) -> Source:
    """The text or the examples that `args` name.

    Args:
        report: Called with a message if `auto` falls back to another built-in text.

    Raises:
        DataError: They name two texts, or text and examples; or the text is not available.
    """
    if not 0 < args.validation_fraction < 1:
        raise DataError(f"--validation_fraction must lie between 0 and 1, got {args.validation_fraction}")
    if args.train_file and args.dataset:
        raise DataError("give either --train_file or --dataset, not both")
    is_dataset = not args.train_file and args.dataset not in (None, AUTO, *SOURCES)
    if (args.dataset_config or args.streaming) and not is_dataset:
        raise DataError("--dataset_config and --streaming are for a dataset that --dataset names; leave them out")
    if args.text_column and not (args.train_file or is_dataset):
        raise DataError(NO_COLUMNS)
    if args.train_file:
        return _open_files(args, report)
    if args.encoding or args.documents != "files":
        raise DataError("--encoding and --documents are for the files of --train_file")
    name = args.dataset or AUTO
    if name == AUTO or name in SOURCES:
        return _open_built_in(list(SOURCES) if name == AUTO else [name], report)
    return _open_dataset(name, args)


def _open_files(args: SourceArguments, report: Callable[[str], None]) -> Source:
    if args.encoding is not None:
        check_encoding(args.encoding)
    files = find_files(args.train_file or [], report)
    name = " ".join(path.name for path in files) if len(files) <= 8 else f"{len(files):,} files"
    tables = [path for path in files if suffix_of(path) in TABLES]
    if tables and len(tables) < len(files):
        text = next(path for path in files if path not in tables)
        raise DataError(f"--train_file takes tables or files of text, not both: {tables[0]} and {text}; name one kind")
    if not tables:
        if args.text_column:
            raise DataError(NO_COLUMNS)
        return _open_texts(name, [TextFile.of(path, args.encoding) for path in files], args.documents, report)
    if args.documents == "lines":
        raise DataError(f"--documents lines is for files of text; each row of {tables[0]} is a document already")
    for path in files:
        if next(iter(RowFiles([path], args.encoding)), None) is None:
            raise DataError(f"{path} is empty")
    rows = RowFiles(files, args.encoding)
    format, text_column = _format_of(name, list(next(iter(rows))), args.text_column)
    return Source(name, Rows(name, rows, text_column), format, has_short_texts=format is LANGUAGE_MODELING)


def _open_texts(name: str, files: list[TextFile], documents: str, report: Callable[[str], None]) -> Source:
    for what, concerned in (
        ("tags are", [file for file in files if file.has_tags]),
        ("the license of Project Gutenberg is", [file for file in files if file.framed]),
    ):
        if concerned:
            where = concerned[0].path.name if len(concerned) == 1 else f"{len(concerned):,} files"
            report(f"{what} left out of {where}")
    if documents == "lines":
        return Source(name, Lines(files), has_short_texts=True)
    return Source(name, files)


def _open_built_in(names: list[str], report: Callable[[str], None]) -> Source:
    first, *others = names
    entry = SOURCES[first]
    try:
        return Source(first, entry.open(), language=entry.language, license=entry.license)
    except DataError as error:
        if not others:
            raise
        report(f"\n*** training on {others[0]}, NOT on {first}: {error}\n")
        return _open_built_in(others, report)


def _open_dataset(name: str, args: SourceArguments) -> Source:
    """The train split of a dataset on the Hub or in a local folder."""
    rows = _load_rows(name, args.dataset_config, args.streaming)
    columns = rows.column_names or list(next(iter(rows)))  # a streamed dataset may not know them before it is read
    format, text_column = _format_of(name, columns, args.text_column)
    rows = rows.select_columns([text_column] if text_column else list(format.columns))
    documents, is_text = Rows(name, rows, text_column), format is LANGUAGE_MODELING
    is_local = os.path.exists(name)
    label, hub_dataset = (Path(name).resolve().name, None) if is_local else (name, name)
    return Source(label, documents, format, hub_dataset=hub_dataset, has_short_texts=is_text)


def _format_of(name: str, columns: list[str], text_column: str | None) -> tuple[DatasetFormat, str | None]:
    """Examples, if there are columns of such; else text, with the name of its column."""
    for format in EXAMPLES if text_column is None else ():
        if set(format.columns) <= set(columns):
            return format, None
    text_column = text_column or "text"
    if text_column not in columns:
        raise DataError(f"the dataset {name!r} has no column {text_column!r}; its columns: {', '.join(columns)}")
    return LANGUAGE_MODELING, text_column


def _load_rows(name: str, config: str | None, streaming: bool) -> Any:
    import datasets

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(name, config, split="train", streaming=streaming)
        next(iter(rows), None)  # a streamed dataset is read only now
        return rows
    except Exception as error:  # the library raises a dozen types, most of them about the network
        built_in = "" if "/" in name else f" (built in are {', '.join([AUTO, *SOURCES])})"
        raise DataError(f"cannot load the dataset {name!r}: {_reason(error)}{built_in}") from error


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
