"""Training and validation windows: `data/windows.py`."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from modeling_gptlite.data import DataError
from modeling_gptlite.data.windows import (
    IGNORED,
    EvaluationWindows,
    RandomWindows,
    in_pieces,
    permuted,
    random_numbers,
    whole_batch,
)


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
    assert torch.equal((batch["input_ids"][:, :1] + torch.arange(8)) % 1000, batch["input_ids"])
    assert torch.equal(batch["labels"], (batch["input_ids"] + 1) % 1000)
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


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 20), st.integers(1, 400), st.integers(0, 2**32 - 1), st.integers(1, 50))
def test_every_id_is_a_target_once_in_a_pass_but_for_a_remainder(context, more, seed, batch_size):
    tokens = context + more
    count, rest = divmod(tokens, context)
    targets = joined(RandomWindows(np.arange(tokens), context, 4 * count, seed), batch_size, "labels")
    assert targets.shape == (4 * count, context)
    for one_pass in targets.reshape(4, -1):
        times = np.bincount(one_pass.numpy(), minlength=tokens)
        assert times.max() == 1
        assert (times == 0).sum() == rest < context
        edges = (times != np.roll(times, 1)).sum()
        assert edges == (2 if rest else 0)  # the remainder is one piece of the ring


@pytest.mark.parametrize("tokens", [25_600, 25_707])
def test_each_pass_has_its_own_windows_in_its_own_order(tokens):
    windows = RandomWindows(np.arange(tokens), context=256, samples=5 * 100, seed=0)
    starts = joined(windows, 50, "input_ids")[:, 0].reshape(5, 100)
    assert all(len(set(one_pass.tolist())) == 100 for one_pass in starts)
    assert all(abs(np.corrcoef(one, other)[0, 1]) < 0.3 for one, other in itertools.combinations(starts.numpy(), 2))
    phases = {tuple(sorted(one_pass.tolist())) for one_pass in starts}
    assert len(phases) == 5


def test_over_many_passes_no_id_is_left_out():
    """Also where a pass is one window and almost as long a remainder."""
    targets = joined(RandomWindows(np.arange(7), context=4, samples=7000, seed=0), 100, "labels")
    counts = np.bincount(targets.flatten().numpy(), minlength=7)
    assert counts.min() > 3700  # of 4,000
    assert counts.max() < 4300


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 12, 100, 7843])
def test_indices_are_permuted_differently_for_each_key(count):
    orders = [permuted(np.full(count, key, dtype=np.uint64), np.arange(count), count) for key in range(9)]
    assert all(sorted(order.tolist()) == list(range(count)) for order in orders)
    assert count < 12 or len({tuple(order.tolist()) for order in orders}) == 9


@pytest.mark.parametrize("count", [3, 4, 5])
def test_every_order_is_about_equally_likely(count):
    keys = np.repeat(random_numbers(0, np.arange(6000)), count)
    orders = permuted(keys, np.tile(np.arange(count), 6000), count).reshape(6000, count)
    times = np.unique(orders, axis=0, return_counts=True)[1]
    assert len(times) == math.factorial(count)
    assert times.min() > 0.4 * times.mean()
    assert times.max() < 1.6 * times.mean()


def test_ten_billion_windows_are_permuted_without_an_array_of_them():
    count, drawn = 10**10, 10**4
    for indices in (np.arange(drawn), count - 1 - np.arange(drawn)):
        numbers = permuted(np.full(drawn, 5, dtype=np.uint64), indices, count)
        assert len(set(numbers.tolist())) == drawn
        assert numbers.max() < count
        assert abs(numbers.mean() / count - 0.5) < 0.02


def test_ids_may_be_mapped_from_a_file(tmp_path):
    ids = np.arange(1000, dtype=np.uint16)
    ids.tofile(tmp_path / "ids")
    mapped = np.memmap(tmp_path / "ids", np.uint16, "r")
    one, other = (joined(RandomWindows(array, 16, 200, seed=1), 64, "labels") for array in (ids, mapped))
    assert torch.equal(one, other)


@pytest.mark.parametrize("tokens", [5, 6, 12])
def test_with_replacement_every_start_is_drawn_about_equally_often(tokens):
    windows = RandomWindows(np.arange(tokens), context=4, samples=1000 * (tokens - 4), seed=0, replacement=True)
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


@pytest.mark.parametrize("kind", [EvaluationWindows, lambda *given, **more: RandomWindows(*given, 12, 0, **more)])
def test_a_token_that_begins_texts_stands_where_no_target_is(kind):
    ids = np.arange(100, 150)
    plain, begun = kind(ids, 8), kind(ids, 8, begin=7)
    expected = joined(plain, 5, "input_ids")
    expected[:, 0] = 7
    assert torch.equal(joined(begun, 5, "input_ids"), expected)
    assert torch.equal(joined(begun, 5, "labels"), joined(plain, 5, "labels"))


def test_pieces_of_windows_begin_as_windows_do():
    batch = RandomWindows(np.arange(100, 150), 8, 4, 0, begin=7).__getitems__([0, 1])
    pieces = in_pieces(batch, 4, begin=7)
    assert pieces["input_ids"].shape == (4, 4)
    assert pieces["input_ids"][:, 0].tolist() == [7] * 4
    assert torch.equal(pieces["labels"].flatten(), batch["labels"].flatten())


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
