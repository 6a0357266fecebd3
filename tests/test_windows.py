"""Training and validation windows: `data/windows.py`."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from modeling_gptlite.data import DataError
from modeling_gptlite.data.windows import IGNORED, EvaluationWindows, RandomWindows, whole_batch


def batches(windows, batch_size):
    return list(DataLoader(windows, batch_size, shuffle=False, collate_fn=whole_batch))


def joined(windows, batch_size, name):
    return torch.cat([batch[name] for batch in batches(windows, batch_size)])


# ---- Training windows ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_labels_are_the_inputs_shifted_by_one(dtype):
    windows = RandomWindows(np.arange(1000, dtype=dtype), context=8, samples=20, seed=0)
    (batch,) = batches(windows, 20)
    assert batch["input_ids"].shape == batch["labels"].shape == (20, 8)
    assert batch["input_ids"].dtype == batch["labels"].dtype == torch.int64
    assert torch.equal(batch["input_ids"][:, :1] + torch.arange(8), batch["input_ids"])
    assert torch.equal(batch["labels"], batch["input_ids"] + 1)
    assert torch.equal(batch["shift_labels"], batch["labels"])


def test_training_windows_do_not_depend_on_how_they_are_batched():
    windows = RandomWindows(np.arange(10_000), context=4, samples=24, seed=7)
    assert len(windows) == 24
    one_by_one = torch.stack([windows[i]["input_ids"] for i in range(24)])
    for batch_size in (1, 5, 24):
        assert torch.equal(joined(windows, batch_size, "input_ids"), one_by_one)


def test_a_training_window_depends_on_seed_and_index_alone():
    windows = RandomWindows(np.arange(10_000), context=4, samples=24, seed=7)
    longer_run = RandomWindows(np.arange(10_000), context=4, samples=1000, seed=7)
    assert torch.equal(longer_run.__getitems__([23, 3, 23])["labels"][1], windows[3]["labels"])
    assert torch.equal(longer_run.__getitems__([23, 3, 23])["labels"][2], windows[23]["labels"])


def test_seeds_give_different_windows():
    starts = [
        tuple(joined(RandomWindows(np.arange(10_000), 4, 50, seed), 50, "input_ids")[:, 0].tolist())
        for seed in range(9)
    ]
    assert len(set(starts)) == 9
    assert all(len(set(drawn) & set(other)) < 5 for drawn in starts for other in starts if other != drawn)


@pytest.mark.parametrize("tokens", [5, 6, 12])
def test_every_start_is_drawn_about_equally_often(tokens):
    windows = RandomWindows(np.arange(tokens), context=4, samples=1000 * (tokens - 4), seed=0)
    starts, counts = np.unique(joined(windows, 1000, "input_ids")[:, 0], return_counts=True)
    assert starts.tolist() == list(range(tokens - 4))
    assert counts.min() > 850


def test_a_training_text_shorter_than_one_window_is_refused_with_both_numbers():
    with pytest.raises(DataError, match=r"1,024 tokens.*1,025"):
        RandomWindows(np.arange(1024), context=1024, samples=1, seed=0)


# ---- Evaluation windows --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2, 64])
@pytest.mark.parametrize("tokens", [2, 8, 9, 10, 16, 17, 18, 24, 25, 26])
def test_every_target_is_counted_exactly_once(tokens, batch_size):
    ids = np.arange(100, 100 + tokens, dtype=np.uint16)
    windows = EvaluationWindows(ids, context=8)
    inputs, targets = joined(windows, batch_size, "input_ids"), joined(windows, batch_size, "shift_labels")
    assert inputs.shape == targets.shape == (math.ceil((tokens - 1) / 8), 8)
    counted = targets != IGNORED
    assert targets[counted].tolist() == ids[1:].tolist()
    assert inputs[counted].tolist() == ids[:-1].tolist()


def test_the_last_window_is_filled_up_with_targets_that_no_loss_counts():
    last = EvaluationWindows(np.arange(10, 17), context=4)[1]
    assert last["labels"].tolist() == last["shift_labels"].tolist() == [15, 16, -100, -100]
    assert last["input_ids"].tolist()[:2] == [14, 15]
    assert last["input_ids"].min() >= 0


def test_a_validation_text_with_nothing_to_predict_is_refused():
    with pytest.raises(DataError, match=r"1 token.*at least 2"):
        EvaluationWindows(np.arange(1), context=4)


@pytest.mark.parametrize("windows", [EvaluationWindows(np.arange(10), 4), RandomWindows(np.arange(10), 4, 3, 0)])
def test_a_loop_over_the_windows_ends(windows):
    assert len(list(itertools.islice(windows, 100))) == len(windows) == 3
