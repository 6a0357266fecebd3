"""Where text comes from, how it is split, and the windows that reach the model: `training/data.py`."""

import hashlib
import http.client
import io
import itertools
import json
import math
import os
import urllib.error

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from modeling_gptlite.training import data
from modeling_gptlite.training.data import (
    IGNORED,
    DataError,
    EvaluationWindows,
    RandomWindows,
    TextSource,
    load_dataset_source,
    load_files,
    load_source,
    read_text,
    split_source,
    whole_batch,
)


MANY_BYTES = "a\r\néΩ\n\r\n🎉e\u0301 \u2028\t漢字\r"  # characters of one to four bytes


def documents(*texts, size=3):
    """A source whose documents come in pieces of `size` characters."""
    return TextSource("test", lambda: [[t[i : i + size] for i in range(0, len(t), size)] for t in texts])


def batches(windows, batch_size):
    return list(DataLoader(windows, batch_size, shuffle=False, collate_fn=whole_batch))


def joined(windows, batch_size, name):
    return torch.cat([batch[name] for batch in batches(windows, batch_size)])


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """Neither a network nor a copy of tiny Shakespeare."""

    def refuse(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setenv("GPTLITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("GPTLITE_DATA", raising=False)


@pytest.fixture
def small_shakespeare(monkeypatch):
    """What counts as tiny Shakespeare in this test."""
    text = b"First Citizen:\n"
    monkeypatch.setattr(data, "TINYSHAKESPEARE_SHA256", hashlib.sha256(text).hexdigest())
    return text


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


# ---- Files ---------------------------------------------------------------------------------------------------------


def test_files_come_in_the_order_given_and_a_folder_by_name(tmp_path):
    (tmp_path / "folder").mkdir()
    for name in ("z.txt", "folder/b.txt", "folder/a.txt", "folder/ignored.md"):
        (tmp_path / name).write_text(name)
    source = load_files([tmp_path / "z.txt", str(tmp_path / "folder")])
    assert "".join(source.pieces(" ")) == "z.txt folder/a.txt folder/b.txt"
    assert source.name == "z.txt a.txt b.txt"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("none.txt", "no such file: .*none.txt"),
        ("empty.txt", "empty.txt is empty"),
        ("folder", "no .txt file in .*folder"),
    ],
)
def test_files_that_cannot_be_trained_on_are_refused(path, message, tmp_path):
    (tmp_path / "empty.txt").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "text.md").write_text("text")
    with pytest.raises(DataError, match=message):
        load_files([tmp_path / path])


@pytest.mark.parametrize("piece_bytes", [1, 2, 3, 4, 1 << 22])
def test_text_is_read_as_it_stands_wherever_its_bytes_are_cut(piece_bytes, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "_PIECE_BYTES", piece_bytes)
    (tmp_path / "text.txt").write_bytes(MANY_BYTES.encode())
    assert "".join(read_text(tmp_path / "text.txt")) == MANY_BYTES


@pytest.mark.parametrize("piece_bytes", [1, 2, 3, 4, 1 << 22])
@pytest.mark.parametrize(
    "content",
    [
        b"\xe9t\xe9",
        b"ab\xc3\xa9cd\xffef",
        b"\xf0\x9f\x8e\x89\xe2\x82X",
        b"abcd\xf0\x9f\x8eX",
        "Ωé".encode() + b"\xf0\x9f",
    ],
    ids=["Latin-1", "after a character", "cut short", "cut short by one", "end of file"],
)
def test_the_offset_of_the_first_wrong_byte_is_named(content, piece_bytes, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "_PIECE_BYTES", piece_bytes)
    (tmp_path / "text.txt").write_bytes(content)
    with pytest.raises(UnicodeDecodeError) as whole:
        content.decode()
    offset = whole.value.start
    with pytest.raises(DataError, match=rf"text.txt is not UTF-8: byte 0x{content[offset]:02x} at offset {offset}$"):
        list(read_text(tmp_path / "text.txt"))


# ---- The split -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_the_split_is_by_position_wherever_the_text_is_cut(size):
    text = MANY_BYTES * 10
    train, validation = split_source(documents(text, size=size), "", validation_fraction=0.1)
    cut = len(text) * 9 // 10
    for _ in range(2):
        assert ("".join(train), "".join(validation)) == (text[:cut], text[cut:])
    assert (len(train), len(validation)) == (cut, len(text) - cut)
    assert train.sha256 == validation.sha256 == hashlib.sha256(text.encode()).hexdigest()


def test_the_separator_stands_between_documents_only():
    source = documents("first", "2", "third one")
    assert "".join(source.pieces("<|endoftext|>")) == "first<|endoftext|>2<|endoftext|>third one"
    train, validation = split_source(source, "|", validation_fraction=0.5)
    assert "".join(train) + "".join(validation) == "first|2|third one"
    assert (len(train), len(validation)) == (8, 9)


# ---- Built-in sources ----------------------------------------------------------------------------------------------


def test_tiny_shakespeare_is_the_real_one():
    if not os.environ.get("GPTLITE_DATA"):
        pytest.skip("GPTLITE_DATA names no folder with tinyshakespeare.txt")
    train, validation = split_source(load_source("tinyshakespeare"), "", validation_fraction=0.1)
    assert train.sha256 == "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
    assert (len(train), len(validation)) == (1_003_854, 111_540)


def test_python_docs_need_no_network(no_network):
    source = load_source("python-docs")
    text = "".join(source.pieces())
    assert len(text) > 100_000
    assert "statement" in text
    assert "".join(source.pieces()) == text


def test_an_unknown_source_is_refused_with_the_names_of_those_there_are():
    with pytest.raises(DataError, match=r"'shakespear'.*auto, tinyshakespeare, python-docs"):
        load_source("shakespear")


def test_tiny_shakespeare_is_read_from_the_data_folder_first(no_network, small_shakespeare, tmp_path, monkeypatch):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "tinyshakespeare.txt").write_text("something else")
    (tmp_path / "tinyshakespeare.txt").write_bytes(small_shakespeare)
    monkeypatch.setenv("GPTLITE_DATA", str(tmp_path))
    for name in ("tinyshakespeare", "auto"):
        source = load_source(name, on_fallback=pytest.fail)
        assert "".join(source.pieces()).encode() == small_shakespeare


@pytest.mark.parametrize("variable", ["GPTLITE_DATA", "GPTLITE_CACHE"])
def test_another_text_in_the_place_of_tiny_shakespeare_is_refused(variable, no_network, tmp_path, monkeypatch):
    (tmp_path / "tinyshakespeare.txt").write_text("To be, or not to be")
    monkeypatch.setenv(variable, str(tmp_path))
    with pytest.raises(DataError, match=r"tinyshakespeare.txt is not tiny Shakespeare: its sha256 differs"):
        load_source("tinyshakespeare")


def test_tiny_shakespeare_is_downloaded_once(no_network, small_shakespeare, tmp_path, monkeypatch):
    served = [io.BytesIO(small_shakespeare)]
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: served.pop())
    for _ in range(2):
        assert "".join(load_source("tinyshakespeare").pieces()).encode() == small_shakespeare
    assert [file.name for file in (tmp_path / "cache").iterdir()] == ["tinyshakespeare.txt"]


def test_a_download_of_something_else_is_refused_and_not_kept(no_network, tmp_path, monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: io.BytesIO(b"<html>Sign in to this network"))
    with pytest.raises(DataError, match=r"githubusercontent.*not tiny Shakespeare"):
        load_source("tinyshakespeare")
    assert not list(tmp_path.rglob("*.*"))


def test_without_a_network_tiny_shakespeare_says_what_to_do(no_network):
    with pytest.raises(DataError, match=r"no network.*GPTLITE_DATA"):
        load_source("tinyshakespeare")


def test_without_a_network_auto_says_that_it_takes_the_python_docs(no_network):
    messages = []
    source = load_source("auto", on_fallback=messages.append)
    assert source.name == "python-docs"
    (message,) = messages
    assert "python-docs, NOT on tiny Shakespeare" in message
    assert "no network" in message


# ---- Data sets -----------------------------------------------------------------------------------------------------


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """A folder for a data set, with the caches of `datasets` beside it."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    (tmp_path / "rows").mkdir()
    return tmp_path / "rows"


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_each_row_of_a_data_set_is_a_document(kind, streaming, rows):
    if kind == "csv":
        (rows / "train.csv").write_text("label,story\n1,one\n2,two\n", encoding="utf-8")
    else:
        lines = [json.dumps({"label": label, "story": story}) for label, story in [(1, "one"), (2, "two")]]
        (rows / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")
    source = load_dataset_source(str(rows), None, text_column="story", streaming=streaming)
    for _ in range(2):
        assert "".join(source.pieces("|")) == "one|two"


@pytest.mark.parametrize("streaming", [False, True])
def test_a_missing_column_is_refused_with_those_there_are(streaming, rows):
    (rows / "train.jsonl").write_text('{"label": 1, "story": "one"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"no column 'text'; its columns: label, story$"):
        load_dataset_source(str(rows), None, text_column="text", streaming=streaming)


@pytest.mark.parametrize("name", ["someone/no-such-data-set", "./no/such/folder"])
def test_a_data_set_that_cannot_be_had_is_named(name, rows):
    with pytest.raises(DataError, match=rf"cannot load the data set '{name}': \S"):
        load_dataset_source(name, None, text_column="text", streaming=False)


def test_a_download_that_breaks_off_is_an_error_with_advice(tmp_path, monkeypatch):
    class BreaksOff(io.BytesIO):
        def read(self, *_):
            raise http.client.IncompleteRead(b"")

    monkeypatch.setenv("GPTLITE_CACHE", str(tmp_path))
    monkeypatch.delenv("GPTLITE_DATA", raising=False)
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: BreaksOff())
    with pytest.raises(DataError, match="GPTLITE_DATA"):
        load_source("tinyshakespeare")


@pytest.mark.parametrize("windows", [EvaluationWindows(np.arange(10), 4), RandomWindows(np.arange(10), 4, 3, 0)])
def test_a_loop_over_the_windows_ends(windows):
    assert len(list(itertools.islice(windows, 100))) == len(windows) == 3


def test_a_row_without_text_is_refused(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"story": "one"}\n{"story": null}\n')
    with pytest.raises(DataError, match="not text"):
        list(load_dataset_source(str(tmp_path), None, "story", True).pieces("|"))
