"""`runs/resume.py`: which settings make a run, and where it may write."""

import dataclasses
import json

import pytest

from modeling_gptlite.runs.resume import (
    MAY_CHANGE,
    ResumeError,
    check_output_dir,
    differences,
    may_change,
    recorded_windows,
    resume_mode,
)
from modeling_gptlite.runs.settings import GROUPS, defaults
from modeling_gptlite.training.arguments import CausalLMTrainingArguments
from modeling_gptlite.training.checkpointing import MANIFEST


def test_a_setting_that_is_missing_has_its_default():
    assert differences({"learning_rate": 1e-3}, {}) == []
    assert differences({"learning_rate": 0.5}, {"seed": 7}) == [
        "learning_rate was 0.5 and is now 0.001",
        "seed was 42 and is now 7",
    ]


@pytest.mark.parametrize(
    ("recorded", "expected"),
    [
        (None, {"replacement": True, "begins": False}),  # version 0.1
        ("without replacement", {"replacement": False, "begins": False}),
        ("without replacement, each after token 1", {"replacement": False, "begins": True}),
    ],
)
def test_windows_are_those_of_the_version_that_began_the_run(recorded, expected, tmp_path):
    (tmp_path / MANIFEST).write_text(json.dumps({"run": {"windows": recorded}}))
    assert recorded_windows(tmp_path) == expected
    assert recorded_windows(None) == {}


@pytest.mark.parametrize(
    "recorded", [{"model_name_or_path": "x", "preset": "modern-10m", "model_overrides": "{}"}, {"vocab_size": 300}]
)
def test_a_setting_that_had_no_effect_and_is_refused_now_is_not_compared(recorded):
    now = {name: value for name, value in recorded.items() if name == "model_name_or_path"}
    assert differences(recorded, now) == []


def test_steps_and_precision_are_compared_as_what_they_resolved_to():
    assert may_change("max_steps")
    assert may_change("precision")
    assert differences({"max_steps": 20}, {"max_steps": 30}) == ["max_steps was 20 and is now 30"]
    assert differences({"precision": "fp32"}, {"precision": "bf16"}) == ["precision was fp32 and is now bf16"]


def test_a_setting_that_an_older_version_compared_may_change():
    assert differences({"load_best_model_at_end": True}, {"load_best_model_at_end": False}) == []


def test_every_pattern_names_a_setting():
    for patterns in MAY_CHANGE.values():
        for pattern in patterns:
            assert any(name == pattern or name.startswith(pattern.rstrip("*")) for name in defaults()), pattern


def test_no_setting_that_changes_the_weights_may_change():
    names = {field.name for group in GROUPS for field in dataclasses.fields(group)}
    changing = {name for name in names if may_change(name)}
    assert not changing & {"learning_rate", "seed", "optimizer", "warmup_steps", "eval_steps", "preset", "lora_r"}


# ---- The output folder ---------------------------------------------------------------------------------------------


def check(folder, resume="auto"):
    args = CausalLMTrainingArguments(str(folder), resume_from_checkpoint=resume)
    check_output_dir(args)
    return resume_mode(args)


@pytest.mark.parametrize(("given", "kept"), [("auto", "auto"), ("True", "true"), (None, "false")])
def test_how_to_resume_is_normalized(given, kept, tmp_path):
    (tmp_path / "checkpoint-10").mkdir()
    if kept == "false":
        with pytest.raises(ResumeError, match="unfinished run; resume it with --resume_from_checkpoint auto"):
            check(tmp_path, given)
    else:
        assert check(tmp_path, given) == kept


@pytest.mark.parametrize("resume", ["auto", "true", "false", "elsewhere"])
def test_a_finished_run_is_never_overwritten(resume, tmp_path):
    (tmp_path / "elsewhere" / "checkpoint-10").mkdir(parents=True)
    (tmp_path / "run" / "checkpoint-10").mkdir(parents=True)
    (tmp_path / "run" / "run.json").touch()
    resume = str(tmp_path / "elsewhere" / "checkpoint-10") if resume == "elsewhere" else resume
    with pytest.raises(ResumeError, match="holds a finished run"):
        check(tmp_path / "run", resume)


def test_a_named_checkpoint_continues_in_its_own_folder_or_in_an_empty_one(tmp_path):
    named = tmp_path / "here" / "checkpoint-10"
    named.mkdir(parents=True)
    (tmp_path / "there" / "checkpoint-20").mkdir(parents=True)
    assert check(tmp_path / "here", str(named)) == str(named)
    assert check(tmp_path / "new", str(named)) == str(named)
    with pytest.raises(ResumeError, match="holds an unfinished run"):
        check(tmp_path / "there", str(named))


def test_a_folder_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ResumeError, match="file is not a folder"):
        check(tmp_path / "file" / "run")


def test_a_read_only_place_is_refused_and_nothing_is_created(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(ResumeError, match="read-only; choose another --output_dir"):
        check(tmp_path / "new" / "run")
    assert not (tmp_path / "new").exists()
