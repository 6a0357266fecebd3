"""Prompts with completions, or conversations: from rows to ids, and whole batches of examples.

source = open_source(SourceArguments(train_file=["questions.jsonl"]))
train, validation = encode_rows(source, Encoder(tokenizer), validation_fraction=0.1)
batches = ShuffledExamples(Examples.of(train, context=1024), samples=steps * batch_size, seed=0)
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from tokenization.corpus import Encoder

from ..decoding import plain_ids, prompt_ids
from . import DataError
from .formats import CONVERSATIONAL, Part
from .sources import Source
from .windows import IGNORED, random_numbers, single


# ---- Ids -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EncodedRow:
    """One example, whole: `ids` and, for each, whether the model learns to predict it; both `(tokens,)`."""

    ids: list[int]
    is_target: list[bool]
    last: int  # number of tokens in the last completion

    def __len__(self) -> int:
        return len(self.ids)

    def fits(self, context: int) -> bool:
        """Whether the last completion is left whole if the beginning is cut off."""
        return self.last <= context


@dataclass
class Examples:
    """The ids of consecutive examples, and which of them the model learns to predict."""

    ids: list[int] = field(default_factory=list)  # `(tokens,)`
    is_target: list[bool] = field(default_factory=list)  # `(tokens,)`, true where the model learns to predict the token
    ends: list[int] = field(default_factory=list)  # `(examples,)`, the index at which each example ends
    truncated: int = 0  # number of examples whose beginning was cut off
    skipped: int = 0  # number of examples left out, because their last completion alone is longer than the context

    @classmethod
    def of(cls, rows: Iterable[EncodedRow], context: int) -> "Examples":
        """The last `context + 1` ids of each row, unless that cuts off a part of its last completion."""
        examples = cls()
        for row in rows:
            if not row.fits(context):
                examples.skipped += 1
                continue
            examples.truncated += len(row) > context + 1
            examples.ids += row.ids[-context - 1 :]
            examples.is_target += [False, *row.is_target[-context - 1 :][1:]]  # nothing predicts the first
            examples.ends.append(len(examples.ids))
        return examples

    def __len__(self) -> int:
        return len(self.ends)

    def span(self, index: int) -> slice:
        return slice(self.ends[index - 1] if index else 0, self.ends[index])

    def prompt(self, index: int) -> list[int]:
        """The ids before the first target."""
        span = self.span(index)
        return self.ids[span][: self.is_target[span].index(True)]

    def completion(self, index: int) -> list[int]:
        """The targets; in a conversation, those of all replies."""
        span = self.span(index)
        return list(itertools.compress(self.ids[span], self.is_target[span]))

    @property
    def targets(self) -> int:
        return sum(self.is_target)

    def count_characters(self, tokenizer: PreTrainedTokenizerBase) -> int:
        """Number of characters that the model learns to predict."""
        is_unknown = tokenizer.unk_token_id not in (None, tokenizer.eos_token_id)
        unknown = tokenizer.unk_token_id if is_unknown else -1
        completions = [self.completion(index) for index in range(len(self))]
        return sum(len(tokenizer.decode(ids, skip_special_tokens=True)) + ids.count(unknown) for ids in completions)


def encode_rows(
    source: Source, encoder: Encoder, validation_fraction: float
) -> tuple[list[EncodedRow], list[EncodedRow]]:
    """The first rows of a source, for training, and the last `validation_fraction` of them, for validation.

    Prompt and completion are encoded separately, as at inference, and every completion ends with the end-of-text token.
    `encoder.unknown` then counts what the tokenizer has no token for.

    Raises:
        DataError: A row is not of the source's format, or the tokenizer has no end-of-text token.
    """
    tokenizer = encoder.tokenizer
    if tokenizer.eos_token is None:
        raise DataError("examples need a tokenizer with an end-of-text token (eos_token), which ends a completion")
    cut = int(source.scan("").documents * (1 - validation_fraction))
    rows = []
    for number, row in enumerate(source.documents, 1):
        parts = source.parts(row, number, tokenizer.special_tokens_map)
        encoded = _encode(parts, encoder, begins=source.format is not CONVERSATIONAL)
        ids = [token_id for part, _ in encoded for token_id in part]
        is_target = [learn for part, learn in encoded for _ in part]
        rows.append(EncodedRow(ids, is_target, last=len(encoded[-1][0])))
    return rows[:cut], rows[cut:]


def _encode(parts: Iterable[Part], encoder: Encoder, begins: bool) -> list[tuple[list[int], bool]]:
    """The ids of each part. `begins`: add the tokens with which the tokenizer begins a text; a template has its own."""
    tokenizer = encoder.tokenizer
    eos = tokenizer.eos_token_id
    encoded: list[tuple[list[int], bool]] = []
    for text, learn in parts:
        is_start = begins and not encoded
        ids = prompt_ids(tokenizer, text) if is_start else plain_ids(tokenizer, text)
        encoder.count_unknown(text, ids)
        encoded.append((ids, learn))
    ids, learn = encoded[-1]
    if learn and eos not in ids:
        encoded[-1] = ([*ids, eos], learn)
    if not encoded[0][0]:  # the first target needs an input
        encoded[0] = (prompt_ids(tokenizer, ""), False)
    return encoded


# ---- Batches -------------------------------------------------------------------------------------------------------


class EvaluationExamples(Dataset):
    """Every example once, in order; batches are as wide as their longest example and padded with the label -100."""

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
        # The padding is on the right, where causal attention hides it from the other tokens: no mask is needed.
        inputs, labels = torch.from_numpy(ids[:, :-1]).contiguous(), torch.from_numpy(targets[:, 1:]).contiguous()
        return {"input_ids": inputs, "labels": labels, "shift_labels": labels}


class ShuffledExamples(EvaluationExamples):
    """Training examples, in a new order in each epoch; sample i depends only on (`seed`, i).

    Args:
        samples: Number of examples in the run, including repetitions: steps x examples per step.

    Attributes:
        tokens_per_sample: Mean length of an example, in tokens.
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
