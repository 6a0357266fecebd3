"""Prompts with completions to learn, or conversations: from rows to ids, and whole batches of examples.

source = load_example_files(["questions.jsonl"])
train, validation = encode_examples(source, tokenizer, context=1024, validation_fraction=0.1)
windows = ShuffledExamples(train, samples=steps * batch_size, seed=0)
"""

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from .data import IGNORED, DataError, TextSource, column_names, load_rows, random_numbers, single, text_source


Row = dict[str, Any]
# `user: ...`, a line each; a reply ends with the end-of-text token. For tokenizers that have no template of their own.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if not loop.first %}{{ '\\n' }}{% endif %}{{ message['role'] }}:"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ ' ' + message['content'] + (eos_token or '') }}{% endgeneration %}"
    "{% else %}{{ ' ' + message['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\nassistant:' }}{% endif %}"
)


@dataclass
class ExampleSource:
    """Rows of `prompt` and `completion`, or of `messages`, that can be read again and again.

    Attributes:
        name: What reports call it.
        open: Starts a new reading of the rows.
        conversations: The rows hold `messages`, each with `role` and `content`.
        chat_template: Jinja template that makes a text of messages.
    """

    name: str
    open: Callable[[], Iterable[Row]]
    conversations: bool
    chat_template: str = CHAT_TEMPLATE

    def share_template(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Take the tokenizer's chat template, or give it this one."""
        if self.conversations and tokenizer.chat_template:
            self.chat_template = tokenizer.chat_template
        elif self.conversations:
            tokenizer.chat_template = self.chat_template
            tokenizer.response_template = {  # how servers read a reply back
                "defaults": {"role": "assistant"},
                "start_anchor": "\nassistant:",
                "fields": {"content": {"close": tokenizer.eos_token, "content": "text"}},
            }

    def pieces(self) -> Iterator[str]:
        """The texts of all rows, without special tokens: what a tokenizer has to know."""
        for number, row in enumerate(self.open(), 1):
            yield from (text for text, _ in self.parts(row, number))

    def parts(self, row: Row, number: int, special_tokens: dict[str, str] | None = None) -> list[tuple[str, bool]]:
        """The row's text in order, and of each part whether it is to be learnt.

        Raises:
            DataError: the row is not of the kind that the source says.
        """
        try:
            if self.conversations:
                return self._turns(row["messages"], special_tokens or {})
            prompt, completion = row["prompt"], row["completion"]
            if not (isinstance(prompt, str) and isinstance(completion, str)):
                raise TypeError("prompt and completion must be text")
            if not completion:
                raise ValueError("the completion is empty")
            return [(prompt, False), (completion, True)]
        except Exception as error:  # a template raises what it likes
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise DataError(f"{self.name}, row {number}: {reason}") from error

    def _turns(self, messages: list[dict[str, str]], special_tokens: dict[str, str]) -> list[tuple[str, bool]]:
        replies = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        if not replies:
            raise ValueError("no message of the role 'assistant', so nothing to learn")
        parts, done = [], ""
        for index in replies:
            prompt = self._render(messages[:index], special_tokens, add_generation_prompt=True)
            reply = self._render(messages[: index + 1], special_tokens)
            if not (prompt.startswith(done) and reply.startswith(prompt)):
                raise ValueError(
                    "the chat template writes a message differently once more follow; give each reply a row of its own"
                )
            parts += [(prompt[len(done) :], False), (reply[len(prompt) :], True)]
            done = reply
        return parts

    def _render(self, messages, special_tokens, add_generation_prompt=False) -> str:
        rendered, _ = render_jinja_template(
            [messages], chat_template=self.chat_template, add_generation_prompt=add_generation_prompt, **special_tokens
        )
        return rendered[0]


def load_example_files(
    paths: Iterable[str | os.PathLike], text_column: str | None = None
) -> ExampleSource | TextSource:
    """JSONL files, one object per line: examples if the first has their columns, else texts.

    Args:
        text_column: Read this column as text, whatever else there is.

    Raises:
        DataError: a file does not exist or has no row, a line is no JSON object, or there is no column to learn from.
    """
    paths = [Path(path) for path in paths]
    for path in paths:
        if not path.is_file():
            raise DataError(f"no such file: {path}")
        if next(_json_rows([path]), None) is None:
            raise DataError(f"{path} is empty")
    columns = list(next(_json_rows(paths)))
    return _source(" ".join(path.name for path in paths), columns, lambda _: _json_rows(paths), text_column)


def load_example_dataset(
    name: str, config: str | None, text_column: str | None, streaming: bool
) -> ExampleSource | TextSource:
    """As `load_example_files`, from the train split of a data set on the Hub or in a local folder."""
    rows = load_rows(name, config, streaming)
    return _source(name, column_names(rows), rows.select_columns, text_column)


def _source(
    name: str, columns: list[str], select: Callable[[list[str]], Iterable[Row]], text_column: str | None
) -> ExampleSource | TextSource:
    for kind in (["messages"], ["prompt", "completion"]):
        if text_column is None and set(kind) <= set(columns):
            return ExampleSource(name, lambda kind=kind: select(kind), conversations=kind == ["messages"])
    return text_source(name, columns, select, text_column or "text")


def _json_rows(paths: Iterable[Path]) -> Iterator[Row]:
    for path in paths:
        with open(path, encoding="utf-8") as file:
            try:
                for number, line in enumerate(file, 1):
                    if not line.strip():
                        continue
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise DataError(f"{path}, line {number}: {line.strip()[:40]!r} is no JSON object")
                    yield row
            except json.JSONDecodeError as error:
                raise DataError(f"{path}, line {number} is not JSON: {error}") from None
            except UnicodeDecodeError as error:
                raise DataError(f"{path} is not UTF-8: {error}") from None


# ---- Ids -----------------------------------------------------------------------------------------------------------


@dataclass
class Examples:
    """Examples one after the other, as ids, and which of them are to be learnt.

    Attributes:
        ids: `(tokens,)`.
        is_target: `(tokens,)`, true where the model learns to predict the token.
        ends: `(examples,)`, where each example ends in them.
        characters: Characters of what is to be learnt.
        truncated: Examples that lost the beginning of their prompt.
        skipped: Examples that were left out, because their completion alone does not fit.
    """

    ids: list[int] = field(default_factory=list)
    is_target: list[bool] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    characters: int = 0
    truncated: int = 0
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.ends)

    def span(self, index: int) -> slice:
        return slice(self.ends[index - 1] if index else 0, self.ends[index])

    def prompt(self, index: int) -> list[int]:
        """The ids before the first that is to be learnt."""
        span = self.span(index)
        return self.ids[span][: self.is_target[span].index(True)]

    def completion(self, index: int) -> list[int]:
        """The ids that are to be learnt; in a conversation, those of all replies."""
        span = self.span(index)
        return list(itertools.compress(self.ids[span], self.is_target[span]))

    @property
    def targets(self) -> int:
        return sum(self.is_target)

    def add(self, encoded: list[tuple[list[int], bool]], context: int) -> None:
        """Append an example cut to its last `context + 1` ids, unless that cuts into its last completion."""
        ids = [token_id for part, _ in encoded for token_id in part]
        is_target = [learnt for part, learnt in encoded for _ in part]
        if len(encoded[-1][0]) > context:
            self.skipped += 1
            return
        self.truncated += len(ids) > context + 1
        self.ids += ids[-context - 1 :]
        self.is_target += [False, *is_target[-context - 1 :][1:]]  # nothing predicts the first
        self.ends.append(len(self.ids))


def encode_examples(
    source: ExampleSource, tokenizer: PreTrainedTokenizerBase, context: int, validation_fraction: float
) -> tuple[Examples, Examples, str]:
    """The first rows to train, the last `validation_fraction` of them to validate, and the sha256 of all rows.

    A prompt and its completion are encoded apart, as they are when the model is used, and every completion ends
    with the end-of-text token. Of an example longer than the context the beginning is cut off; one whose last
    completion does not fit is left out.

    Raises:
        DataError: a row is not as it should be, the tokenizer has no end-of-text token, or a split is empty.
    """
    if tokenizer.eos_token is None:
        raise DataError("the tokenizer has no token that ends a text (eos_token); completions need one")
    digest, rows = hashlib.sha256(), 0
    for row in source.open():
        digest.update(json.dumps(row, sort_keys=True, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass"))
        rows += 1
    train, validation = Examples(), Examples()
    cut = int(rows * (1 - validation_fraction))
    for number, row in enumerate(source.open(), 1):
        parts = source.parts(row, number, tokenizer.special_tokens_map)
        split = train if number <= cut else validation
        split.add(_encode(parts, tokenizer, source.conversations), context)
    for split, name in ((train, "train"), (validation, "validate")):
        if not len(split):
            raise DataError(f"{source.name}: of {rows:,} rows none is left to {name}; {split.skipped:,} are too long")
        for index in range(len(split)):
            split.characters += len(tokenizer.decode(split.completion(index), skip_special_tokens=True))
    return train, validation, digest.hexdigest()


def _encode(parts, tokenizer: PreTrainedTokenizerBase, conversation: bool) -> list[tuple[list[int], bool]]:
    eos = tokenizer.eos_token_id
    encoded = []
    for index, (text, learnt) in enumerate(parts):
        # A prompt begins as the tokenizer begins any text; a chat template has written its special tokens out.
        begins = index == 0 and not conversation
        ids = tokenizer(text, add_special_tokens=begins, verbose=False)["input_ids"]
        if begins and ids[-1:] == [eos] and not text.endswith(tokenizer.eos_token):
            ids = ids[:-1]  # the tokenizer ends every text, but this one goes on
        if learnt and eos not in ids:
            ids = [*ids, eos]
        encoded.append((ids, learnt))
    if not encoded[0][0]:  # an empty prompt: something has to predict the first token
        encoded[0] = ([tokenizer.bos_token_id if tokenizer.bos_token_id is not None else eos], False)
    return encoded


# ---- Batches -------------------------------------------------------------------------------------------------------


class EvaluationExamples(Dataset):
    """Every example once, in order; batches are as wide as their longest example, and filled with -100."""

    def __init__(self, examples: Examples):
        self.ids, self.is_target = np.array(examples.ids), np.array(examples.is_target)
        self.spans = [examples.span(index) for index in range(len(examples))]

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return single(self, index)

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        spans = [self.spans[index] for index in indices]
        shape = len(spans), max(span.stop - span.start for span in spans)
        ids, targets = np.zeros(shape, dtype=np.int64), np.full(shape, IGNORED, dtype=np.int64)
        for row, span in enumerate(spans):
            length = span.stop - span.start
            ids[row, :length] = self.ids[span]
            targets[row, :length] = np.where(self.is_target[span], self.ids[span], IGNORED)
        # The filling is on the right, where causal attention keeps it from the rest: no mask is needed.
        inputs, targets = torch.from_numpy(ids[:, :-1]), torch.from_numpy(targets[:, 1:]).contiguous()
        return {"input_ids": inputs.contiguous(), "labels": targets, "shift_labels": targets}


class ShuffledExamples(EvaluationExamples):
    """Training examples, in a new order in every epoch; sample i depends on (`seed`, i) alone.

    Args:
        samples: Number of examples in the run, repetitions included: steps x batch size.
    """

    def __init__(self, examples: Examples, samples: int, seed: int):
        super().__init__(examples)
        self.samples, self.seed = samples, seed
        self.tokens_per_sample = len(self.ids) / len(self.spans)
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return self.samples

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        count = len(self.spans)
        return super().__getitems__([self._shuffled(index // count)[index % count] for index in indices])

    def _shuffled(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            numbers = np.arange(epoch * len(self.spans), (epoch + 1) * len(self.spans))
            self._order = np.argsort(random_numbers(self.seed, numbers), kind="stable")
            self._epoch = epoch
        return self._order
