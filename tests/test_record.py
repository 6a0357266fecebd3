"""`run.json`: whatever a user passes can be written, and a file that is not a record is refused in one line."""

import json
import subprocess
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import pytest
import torch
from transformers.trainer_pt_utils import AcceleratorConfig

from modeling_gptlite.runs import record
from modeling_gptlite.runs.record import RecordError, describe_environment, plain, publishable, read_run, write_run


class Color(Enum):
    RED = "red"


@dataclass
class Point:
    x: float
    places: list


VALUES = {
    "plain values": ({"a": [1, 2.5, "b", None, True]}, {"a": [1, 2.5, "b", None, True]}),
    "not a number": ([float("nan"), float("inf"), -float("inf")], [None, None, None]),
    "an enum": ({Color.RED: Color.RED}, {"red": "red"}),
    "a dataclass": (Point(1.0, [Path("a")]), {"x": 1.0, "places": ["a"]}),
    "sets and tuples": (({1}, (2, 3)), [[1], [2, 3]]),
    "an object of torch": ([torch.float32, torch.device("cpu")], ["torch.float32", "cpu"]),
    "keys of other types": ({1: "a", None: "b"}, {"1": "a", "None": "b"}),
}


@pytest.mark.parametrize(("value", "expected"), VALUES.values(), ids=VALUES)
def test_every_value_has_a_form_in_json(value, expected):
    assert plain(value) == expected
    assert json.loads(json.dumps(plain(value), allow_nan=False)) == expected


def test_the_settings_of_accelerate_are_a_dictionary():
    assert plain(AcceleratorConfig(split_batches=True))["split_batches"] is True


def test_a_record_is_written_whole_and_read_back(tmp_path):
    write_run(tmp_path, {"loss": float("nan"), "text": "a lone surrogate: \ud800"})
    assert read_run(tmp_path) == {"loss": None, "text": "a lone surrogate: \ud800"}
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_published_arguments_hold_neither_tokens_nor_places(tmp_path):
    (tmp_path / "a.txt").touch()
    arguments = {
        "hub_token": "hf_ada",
        "train_file": [str(tmp_path / "a.txt")],
        "fsdp_config": {"path": str(tmp_path)},
        "sample_prompt": "a\0b",
    }
    assert publishable(arguments) == {
        "train_file": ["a.txt"],
        "fsdp_config": {"path": tmp_path.name},
        "sample_prompt": "a\0b",
    }


def test_the_environment_names_versions_and_hardware():
    environment = describe_environment(torch.device("cpu"))
    assert environment["versions"]["torch"] == torch.__version__
    assert "cores of" in environment["hardware"]


@pytest.mark.parametrize("tracked", ["record.py", "other.py"])
def test_the_commit_is_that_of_the_code_and_not_of_a_clone_around_it(tracked, tmp_path, monkeypatch):
    def git(*argv) -> str:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=ada", "-c", "user.email=ada@localhost", *argv]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    monkeypatch.setattr(record, "__file__", str(tmp_path / "record.py"))
    for name in ("record.py", "other.py"):
        (tmp_path / name).touch()
    git("init")
    git("add", tracked)
    git("commit", "-m", "first")
    expected = git("rev-parse", "HEAD") if tracked == "record.py" else None
    assert describe_environment(torch.device("cpu"))["commit"] == expected


NOT_RECORDS = {
    "no file": (lambda path: None, "cannot read .*run.json: No such file"),
    "a folder": (lambda path: path.mkdir(), "cannot read .*run.json: Is a directory"),
    "Latin-1": (lambda path: path.write_bytes(b'{"a": "\xe9"}'), "run.json is not UTF-8: byte 0xe9"),
    "half a file": (lambda path: path.write_text('{"a": '), "run.json is not JSON"),
    "a list": (lambda path: path.write_text("[]"), "must be a JSON object"),
}


@pytest.mark.parametrize(("make", "message"), NOT_RECORDS.values(), ids=NOT_RECORDS)
def test_what_is_not_a_record_is_refused_in_one_line(make, message, tmp_path):
    make(tmp_path / "run.json")
    with pytest.raises(RecordError, match=message):
        read_run(tmp_path)
