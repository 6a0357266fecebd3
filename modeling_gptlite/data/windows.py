"""Windows of packed ids for training and validation, sliced in whole batches without Python code per sample.

train = RandomWindows(ids, context=256, samples=1000 * 64, seed=0)
"""

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
    """Training windows of `context + 1` ids at random offsets; sample i depends only on (`seed`, i).

    A run is one pass over all samples in order, so that a resumed run reads the same windows as an uninterrupted one.
    Use it with a sequential sampler and `whole_batch` as the collate function.

    Args:
        ids: `(tokens,)` packed ids, in memory or memory-mapped.
        context: Context length, in tokens.
        samples: Number of windows in the run: steps x windows per step.

    Attributes:
        tokens_per_sample: Targets in a window.

    Raises:
        DataError: There are fewer than `context + 1` ids.
    """

    def __init__(self, ids: np.ndarray, context: int, samples: int, seed: int):
        if len(ids) <= context:
            shorter = longest_context(len(ids))
            advice = f"give more text, or --context_length {shorter}" if shorter else "give more text"
            raise DataError(
                f"the training text has {len(ids):,} tokens; a window of the context length needs {context + 1:,}: "
                f"{advice}"
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
    """A whole split in non-overlapping windows, each target once; the last window is padded with the label -100.

    Args:
        ids: `(tokens,)` packed ids, in memory or memory-mapped.
        context: Context length, in tokens.

    Raises:
        DataError: There are fewer than two ids, so nothing to predict.
    """

    def __init__(self, ids: np.ndarray, context: int):
        if len(ids) < 2:
            raise DataError(
                f"the validation text has {len(ids)} tokens; at least 2 are needed: give more text, or a larger "
                "--validation_fraction"
            )
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


def single(windows: Any, index: int) -> dict[str, torch.Tensor]:
    """One sample of a dataset that slices whole batches."""
    if not 0 <= index < len(windows):
        raise IndexError(index)  # which ends a `for` loop over the windows
    return {name: tensor[0] for name, tensor in windows.__getitems__([index]).items()}


def whole_batch(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The collate function for datasets that return a whole batch from `__getitems__`."""
    return batch


def _batch(windows: np.ndarray) -> dict[str, torch.Tensor]:
    """`(batch, context + 1)` ids to inputs and targets, under both names: the Trainer counts the `labels`."""
    ids = torch.from_numpy(windows)
    targets = ids[:, 1:].contiguous()
    return {"input_ids": ids[:, :-1].clamp(min=0), "labels": targets, "shift_labels": targets}


def random_numbers(seed: int, indices: np.ndarray) -> np.ndarray:
    """SplitMix64 (Steele et al., 2014) of each sample's index: random access to a random sequence; `(indices,)`."""
    with np.errstate(over="ignore"):
        golden = np.uint64(0x9E3779B97F4A7C15)
        x = (indices.astype(np.uint64) + np.uint64(1)) * golden + np.uint64(seed) * np.uint64(0xD1342543DE82EF95)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
