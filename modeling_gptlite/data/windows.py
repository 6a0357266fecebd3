"""Windows of packed ids for training and validation, sliced in whole batches without Python code per sample.

train = RandomWindows(ids, context=256, samples=1000 * 64, seed=0)
"""

import math
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from . import DataError


IGNORED = -100  # the label that losses ignore


def longest_context(tokens: int) -> int:
    """The longest context length, a power of two, with which two windows or more fit in the text; 0 if none does."""
    return 1 << (tokens // 2).bit_length() - 1 if tokens > 1 else 0


class RandomWindows(Dataset):
    """Training windows of `context + 1` ids; sample i depends only on (`seed`, i).

    The ids are read as a ring: after the last one comes the first. A pass has `len(ids) // context` windows. Each pass
    begins at a random place and takes its windows in a random order. So every id is a target exactly once in a pass,
    except for the `len(ids) % context` ids up to that place.

    A run is one pass over all samples in order, so that a resumed run reads the same windows as an uninterrupted one.
    Use it with a sequential sampler and `whole_batch` as the collate function.

    Args:
        ids: `(tokens,)` packed ids, in memory or memory-mapped.
        context: Context length, in tokens.
        samples: Number of windows in the run: steps x windows per step.
        begin: The token that stands in the place of the first of each window, where no target is: Gemma and Llama 3
            have read one before every text.
        replacement: Draw the start of each window independently, as version 0.1 did: after one pass, 37 % of the ids
            were never a target. Unfinished runs of that version need it.

    Attributes:
        tokens_per_sample: Targets in a window.

    Raises:
        DataError: There are fewer than `context + 1` ids.
    """

    def __init__(
        self,
        ids: np.ndarray,
        context: int,
        samples: int,
        seed: int,
        begin: int | None = None,
        replacement: bool = False,
    ):
        if len(ids) <= context:
            shorter = longest_context(len(ids))
            advice = f"give more text, or --context_length {shorter}" if shorter else "give more text"
            raise DataError(
                f"the training text has {len(ids):,} tokens; a window of the context length needs {context + 1:,}: "
                f"{advice}"
            )
        self.ids, self.context, self.samples, self.seed = ids, context, samples, seed
        self.begin, self.replacement = begin, replacement
        self.tokens_per_sample = context
        self._span = np.arange(context + 1)

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return single(self, index)

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        starts = self._starts(np.asarray(indices)).astype(np.int64)
        return _batch(self.ids[(starts[:, None] + self._span) % len(self.ids)].astype(np.int64), self.begin)

    def _starts(self, indices: np.ndarray) -> np.ndarray:
        if self.replacement:
            return random_numbers(self.seed, indices) % np.uint64(len(self.ids) - self.context)
        passes, windows = np.divmod(indices, len(self.ids) // self.context)
        keys = random_numbers(self.seed, passes)
        phases = random_numbers(keys, np.zeros_like(passes)) % np.uint64(len(self.ids))
        return phases + permuted(keys, windows, len(self.ids) // self.context) * np.uint64(self.context)


class EvaluationWindows(Dataset):
    """A whole split in non-overlapping windows, each target once; the last window is padded with the label -100.

    Args:
        ids: `(tokens,)` packed ids, in memory or memory-mapped.
        context: Context length, in tokens.
        begin: As for `RandomWindows`.

    Raises:
        DataError: There are fewer than two ids, so nothing to predict.
    """

    def __init__(self, ids: np.ndarray, context: int, begin: int | None = None):
        if len(ids) < 2:
            raise DataError(
                f"the validation text has {len(ids)} tokens; at least 2 are needed: give more text, or a larger "
                "--validation_fraction"
            )
        self.ids, self.context, self.begin = ids, context, begin

    def __len__(self) -> int:
        return -(-(len(self.ids) - 1) // self.context)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return single(self, index)

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        windows = np.full((len(indices), self.context + 1), IGNORED, dtype=np.int64)
        for row, index in enumerate(indices):
            window = self.ids[index * self.context : (index + 1) * self.context + 1]
            windows[row, : len(window)] = window
        return _batch(windows, self.begin)


def single(windows: Any, index: int) -> dict[str, torch.Tensor]:
    """One sample of a dataset that slices whole batches."""
    if not 0 <= index < len(windows):
        raise IndexError(index)  # which ends a `for` loop over the windows
    return {name: tensor[0] for name, tensor in windows.__getitems__([index]).items()}


def in_pieces(batch: dict[str, torch.Tensor], length: int, begin: int | None) -> dict[str, torch.Tensor]:
    """Windows `(batch, context)` cut into pieces of `length` tokens, which begin as a window does."""
    pieces = {name: tensor.reshape(-1, length) for name, tensor in batch.items()}
    if begin is not None:
        pieces["input_ids"][:, 0] = begin
    return pieces


def whole_batch(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The collate function for datasets that return a whole batch from `__getitems__`."""
    return batch


def _batch(windows: np.ndarray, begin: int | None) -> dict[str, torch.Tensor]:
    """`(batch, context + 1)` ids to inputs and targets, under both names: the Trainer counts the `labels`."""
    ids = torch.from_numpy(windows)
    targets = ids[:, 1:].contiguous()
    inputs = ids[:, :-1].clamp(min=0)
    if begin is not None:
        inputs[:, 0] = begin
    return {"input_ids": inputs, "labels": targets, "shift_labels": targets}


def permuted(keys: np.ndarray, indices: np.ndarray, count: int) -> np.ndarray:
    """Where a random permutation of `range(count)` puts each index, without an array of `count` numbers; `(indices,)`.

    A Feistel network on the digits of a number `left * columns + right`, with cycle walking: numbers of `count` or more
    are permuted again (Black and Rogaway, 2002).

    Args:
        keys: `(indices,)`, uint64; each key has its own permutation.
        indices: `(indices,)`, from 0 to `count - 1`.
    """
    rows = math.isqrt(count - 1) + 1
    columns = -(-count // rows)  # rows * columns < count + rows, so few numbers have to walk
    numbers = indices.astype(np.uint64)
    walking = np.arange(len(numbers))
    while len(walking):
        left, right = np.divmod(numbers[walking], np.uint64(columns))
        for round in range(1, 5):
            key = keys[walking] + np.uint64(2 * round)  # halved, the random numbers leave room for the sums
            left = (left + random_numbers(key, right) // np.uint64(2)) % np.uint64(rows)
            right = (right + random_numbers(key + np.uint64(1), left) // np.uint64(2)) % np.uint64(columns)
        numbers[walking] = left * np.uint64(columns) + right
        walking = walking[numbers[walking] >= count]
    return numbers


def random_numbers(seed: int | np.ndarray, indices: np.ndarray) -> np.ndarray:
    """SplitMix64 (Steele et al., 2014) of each sample's index: random access to a random sequence; `(indices,)`."""
    with np.errstate(over="ignore"):
        golden = np.uint64(0x9E3779B97F4A7C15)
        x = (indices.astype(np.uint64) + np.uint64(1)) * golden + np.uint64(seed) * np.uint64(0xD1342543DE82EF95)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
