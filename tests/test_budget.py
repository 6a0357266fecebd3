"""`runs/budget.py`: minutes become a number of steps, before training and once for all."""

import copy
import dataclasses
import itertools
import json
from pathlib import Path

import pytest
from helpers import interrupted, refused, same_weights, tiny_model
from safetensors.torch import load_file

from modeling_gptlite.runs import arguments, budget
from modeling_gptlite.runs.budget import Costs, fit
from modeling_gptlite.runs.identity import ResumeError
from modeling_gptlite.runs.start import start_from
from modeling_gptlite.training import hardware
from modeling_gptlite.training.arguments import ArgumentError, CausalLMTrainingArguments
from modeling_gptlite.training.checkpointing import MANIFEST, Checkpoints
from modeling_gptlite.training.trainer import CausalLMTrainer
from scripts import train
from scripts.parser import Parser


COSTS = Costs(start=1.75, step=0.1, short_step=0.1, evaluation=2.0, checkpoint=1.0)


def fitted(minutes=1.0, costs=COSTS, **given):
    return fit(costs, CausalLMTrainingArguments("out", minutes=minutes, **given), {"minutes": minutes, **given})


# ---- From seconds to steps -----------------------------------------------------------------------------------------


def test_steps_evaluations_and_checkpoints_fill_the_time():
    # 57 seconds remain after the reserve and the first step; 3 evaluations take 9 of them, at most a fifth
    assert fitted() == {"max_steps": 480, "warmup_steps": 24, "eval_steps": 160, "save_steps": 160}


def test_a_long_run_has_the_usual_warm_up_and_ten_evaluations():
    settings = fitted(minutes=60)
    assert settings["warmup_steps"] == 100
    assert settings["max_steps"] == 34_962
    assert settings["eval_steps"] == 3_497


def test_short_windows_are_counted_with_their_own_time():
    costs = Costs(start=1.75, step=0.1, short_step=0.05, evaluation=2.0, checkpoint=1.0)
    assert fitted(costs=costs, short_context=64, short_context_fraction=0.5)["max_steps"] == 640
    assert fitted(costs=costs)["max_steps"] == 480


def test_an_evaluation_that_takes_too_much_of_the_time_is_left_out():
    settings = fitted(costs=Costs(start=1.75, step=0.1, short_step=0.1, evaluation=44.0, checkpoint=1.0))
    assert settings["max_steps"] == 550
    assert settings["eval_delay"] > settings["max_steps"]
    assert settings["save_steps"] == 275


def test_given_intervals_and_warm_up_are_kept():
    settings = fitted(eval_steps=100, save_steps=200, warmup_steps=7)
    assert settings == {"max_steps": 440}  # 44 seconds, and 13 for 5 evaluations and 3 checkpoints


@pytest.mark.parametrize(
    ("given", "steps"),
    [
        ({"eval_strategy": "no", "load_best_model_at_end": False, "save_strategy": "no"}, 570),
        ({"eval_strategy": "epoch", "save_strategy": "epoch"}, 540),
        ({"eval_strategy": "epoch", "save_strategy": "best"}, 540),
        ({"eval_steps": 0.1, "save_steps": 0.5}, 350),
    ],
)
def test_every_strategy_is_counted(given, steps):
    assert fitted(**given)["max_steps"] == steps


def test_a_time_too_short_for_one_step_is_refused():
    with pytest.raises(ArgumentError, match=r"--minutes 0\.05 is too short"):
        fitted(minutes=0.05)


@pytest.mark.parametrize("given", [{"max_steps": 5}, {"num_train_epochs": 2.0}])
def test_a_number_of_steps_beside_the_minutes_is_refused(given, text_file, tmp_path, capsys):
    flags = [f"--{name}={value}" for name, value in given.items()]
    output = tmp_path / "run"
    refused(
        *(train.main, f"--train_file={text_file}", "--minutes=1", f"--output_dir={output}", *flags),
        capsys=capsys,
        told=["either --minutes or --", "not both"],
    )
    assert not output.exists()


@pytest.mark.parametrize("minutes", ["0", "-1", "nan"])
def test_minutes_must_be_above_zero(minutes, text_file, tmp_path, capsys):
    flags = [f"--train_file={text_file}", f"--output_dir={tmp_path / 'x'}", f"--minutes={minutes}"]
    refused(train.main, *flags, capsys=capsys, told=["--minutes must be above 0"])


def test_a_trainer_alone_does_not_take_minutes(tmp_path):
    with pytest.raises(ArgumentError, match="needs max_steps"):
        CausalLMTrainer(tiny_model("modern-1m"), CausalLMTrainingArguments(str(tmp_path), minutes=5))


def test_a_trainer_alone_does_not_take_auto(tmp_path):
    with pytest.raises(ArgumentError, match="takes True or False"):
        CausalLMTrainer(tiny_model("modern-1m"), CausalLMTrainingArguments(str(tmp_path), torch_compile="auto"))


def test_minutes_replace_the_steps_of_a_recipe_and_what_depends_on_them(text_file, tmp_path, monkeypatch):
    monkeypatch.setattr(budget, "measure", lambda *_: COSTS)
    places = {"train_file": [str(text_file)], "output_dir": str(tmp_path / "run")}
    run = start_from("quickstart", **places, minutes=1, model_overrides={"hidden_size": 32})
    assert run.args.max_steps == 480
    assert run.args.eval_steps == 160
    assert run.args.short_context_fraction == 0.6


# ---- Runs ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def settings(text_file, tmp_path):
    """A toy run with dropout, whose random numbers must be those of an ordinary run, and with short windows."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "max_position_embeddings": 32, "hidden_dropout": 0.1}
    return {
        "train_file": [str(text_file)],
        "output_dir": str(tmp_path / "run"),
        "preset": "modern-1m",  # else the run would choose its size
        "model_overrides": sizes,
        "per_device_train_batch_size": 8,
        "short_context": 16,
        "sample_length": 10,
        "eval_sample_length": 10,
        "minutes": 0.1,
    }


@pytest.fixture
def ticking(monkeypatch):
    """A clock that advances by a quarter of a second whenever it is read."""
    ticks = itertools.count()
    monkeypatch.setattr(budget, "now", lambda: 0.25 * next(ticks))


def test_the_number_of_steps_follows_from_the_clock(settings, ticking):
    run = start_from(**settings)
    # 5.88 seconds; first steps 0.5, two evaluations with their checkpoints 1; 3 steps take two readings of the clock
    assert run.args.max_steps == run.prepared.steps == 26
    assert len(run.prepared.train) == 26 * 8
    assert run.facts["budget"] == {"minutes": 0.1, "seconds_per_step": pytest.approx(0.5 / 3)}


def test_measuring_changes_nothing(settings):
    run = start_from(**{**settings, "minutes": None, "max_steps": 10**6})
    before = copy.deepcopy(run.trainer.model.state_dict())
    args = dataclasses.replace(run.args, minutes=0.01, max_steps=-1)
    costs = budget.measure(run.trainer.model, args, run.prepared)
    assert all(value > 0 for value in vars(costs).values())
    assert all(tensor.equal(before[name]) for name, tensor in run.trainer.model.state_dict().items())
    assert list(Path(args.output_dir).iterdir()) == []


def test_a_run_with_minutes_is_an_ordinary_run_with_its_steps(settings, ticking, tmp_path):
    record = start_from(**settings).train()
    ordinary = record["arguments"]
    assert "minutes" not in ordinary
    assert record["results"]["steps"] == ordinary["max_steps"]
    same = {**settings, "minutes": None, **{name: ordinary[name] for name in budget.FITTED if name in ordinary}}
    same_record = start_from(**{**same, "output_dir": str(tmp_path / "ordinary")}).train()
    assert same_record["results"]["loss"] == record["results"]["loss"]
    assert same_weights(tmp_path / "run", tmp_path / "ordinary")
    assert [path.name for path in (tmp_path / "run").iterdir() if path.name.startswith(".")] == []


def test_a_resumed_run_keeps_its_number_of_steps(settings, ticking, tmp_path, monkeypatch):
    whole = start_from(**{**settings, "output_dir": str(tmp_path / "whole")})
    whole.train()
    again = start_from(**settings)
    interrupted(again, 4)
    monkeypatch.setattr(budget, "measure", lambda *_: pytest.fail("measured again"))
    resumed = start_from(**settings)
    assert resumed.args.max_steps == again.args.max_steps == whole.args.max_steps
    record = resumed.train()
    assert record["budget"] == whole.facts["budget"]
    assert record["arguments"] == whole.facts["arguments"]
    assert same_weights(tmp_path / "run", tmp_path / "whole")


def test_a_manifest_holds_what_minutes_determined(settings, ticking, tmp_path):
    run = interrupted(start_from(**settings), 4)
    recorded = Checkpoints.recorded_run(tmp_path / "run" / "checkpoint-4")
    assert recorded["minutes"] == 0.1
    assert {name: recorded[name] for name in ("max_steps", "eval_steps")} == {
        "max_steps": run.args.max_steps,
        "eval_steps": run.args.eval_steps,
    }


def test_other_minutes_are_another_run(settings, ticking):
    interrupted(start_from(**settings), 4)
    with pytest.raises(ResumeError, match=r"minutes was 0\.1 and is now 5\.0"):
        start_from(**{**settings, "minutes": 5})
    with pytest.raises(ResumeError, match=r"minutes was 0\.1 and is now None"):
        start_from(**{**settings, "minutes": None, "max_steps": 20})


def test_minutes_do_not_resume_a_run_without(settings, tmp_path):
    interrupted(start_from(**{**settings, "minutes": None, "max_steps": 20}), 4)
    with pytest.raises(ResumeError, match=r"minutes was None and is now 0\.1"):
        start_from(**settings)


def test_a_run_without_evaluations_saves_its_last_weights(settings, tmp_path, monkeypatch):
    slow = Costs(start=0.0, step=0.5, short_step=0.5, evaluation=4.0, checkpoint=0.0)
    monkeypatch.setattr(budget, "measure", lambda *_: slow)
    record = start_from(**settings).train()
    assert record["results"]["best_step"] == record["results"]["steps"] == 11
    assert not [row for row in record["log_history"] if "eval_loss" in row]
    last = load_file(tmp_path / "run" / "checkpoint-11" / "model.safetensors")
    assert all(tensor.equal(last[name]) for name, tensor in load_file(tmp_path / "run" / "model.safetensors").items())


# ---- Compilation ---------------------------------------------------------------------------------------------------


@pytest.fixture
def compiler(monkeypatch):
    """A compiler that does nothing, and pays in runs of more than a minute."""
    monkeypatch.setattr(budget, "compiling_pays", lambda seconds: seconds > 60)
    monkeypatch.setattr(budget, "switch_on_compilation", lambda args: setattr(args, "torch_compile", True))


@pytest.mark.parametrize(
    ("length", "seconds_per_step", "pays"),
    [
        ({"minutes": 0.9}, 0.1, False),
        ({"minutes": 1.1}, 0.1, True),
        ({"minutes": None, "max_steps": 500}, 0.1, False),
        ({"minutes": None, "max_steps": 500}, 0.2, True),
    ],
)
def test_a_run_is_compiled_if_it_is_long_enough(length, seconds_per_step, pays, settings, compiler, monkeypatch):
    costs = Costs(start=0.0, step=seconds_per_step, short_step=seconds_per_step, evaluation=1.0, checkpoint=0.0)
    monkeypatch.setattr(budget, "measure", lambda *_: costs)
    run = start_from(**{**settings, **length, "torch_compile": "auto"})
    assert run.facts["environment"]["choices"]["compiled"] == pays
    assert run.facts["arguments"]["torch_compile"] == pays


@pytest.mark.parametrize("was_compiled", [True, False])
def test_a_resumed_run_is_compiled_as_before(was_compiled, settings, compiler, monkeypatch):
    settings = {**settings, "minutes": None, "torch_compile": "auto", "max_steps": 8}
    monkeypatch.setattr(budget, "measure", lambda *_: COSTS)
    interrupted(start_from(**settings), 4)
    manifest = Path(settings["output_dir"], "checkpoint-4", MANIFEST)
    content = json.loads(manifest.read_text())
    assert content["run"]["torch_compile"] is False
    content["run"]["torch_compile"] = was_compiled
    manifest.write_text(json.dumps(content))
    monkeypatch.setattr(budget, "compiling_pays", lambda seconds: pytest.fail("measured again"))
    assert start_from(**settings).args.torch_compile == was_compiled


def test_switched_on_is_what_the_trainers_argument_does(tmp_path):
    by_argument, switched = (CausalLMTrainingArguments(str(tmp_path), torch_compile=value) for value in (True, False))
    hardware.switch_on_compilation(switched)
    names = ("torch_compile", "torch_compile_backend", "torch_compile_mode")
    assert [getattr(switched, name) for name in names] == [getattr(by_argument, name) for name in names]


@pytest.mark.parametrize("value", ["true", "", "auto", "false"])
def test_the_flag_is_true_false_or_auto(value):
    parser = Parser(arguments.GROUPS, "")
    *_, args = parser.parse(["--torch_compile", *([value] if value else [])])
    assert (args.torch_compile, args.compile_if_it_pays) == (value in ("true", ""), value == "auto")
