"""`runs/auto.py`: what a run decides for itself, once, before it trains: size, compilation, number of steps."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
from helpers import ANSWERS, interrupted, refused, same_weights, tiny_model, toy_run, write_rows
from safetensors.torch import load_file

from modeling_gptlite.runs import auto, sizes, train
from modeling_gptlite.runs.auto import Facts, resolve
from modeling_gptlite.runs.resume import ResumeError
from modeling_gptlite.runs.settings import GROUPS
from modeling_gptlite.runs.sizes import SIZES, Size
from modeling_gptlite.runs.steps import FITTED
from modeling_gptlite.runs.train import start_from
from modeling_gptlite.training.arguments import ArgumentError, CausalLMTrainingArguments
from modeling_gptlite.training.checkpointing import MANIFEST, Checkpoints
from modeling_gptlite.training.timing import Costs
from modeling_gptlite.training.trainer import CausalLMTrainer
from scripts import train as command
from scripts.parser import Parser


pytestmark = pytest.mark.usefixtures("small_reserve")
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 128}


def costs(step: float, evaluation: float = 1.0, tokens_per_step: int = 1536) -> Costs:
    return Costs(0.0, step, step, evaluation, checkpoint=0.0, tokens_per_step=tokens_per_step)


# ---- What is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [{"max_steps": 5}, {"num_train_epochs": 2.0}])
def test_a_number_of_steps_beside_the_minutes_is_refused(given, text_file, tmp_path, capsys):
    flags = [f"--{name}={value}" for name, value in given.items()]
    output = tmp_path / "run"
    refused(
        *(command.main, f"--train_file={text_file}", "--minutes=1", f"--output_dir={output}", *flags),
        capsys=capsys,
        told=["either --minutes or --", "not both"],
    )
    assert not output.exists()


@pytest.mark.parametrize("minutes", ["0", "-1", "nan"])
def test_minutes_must_be_above_zero(minutes, text_file, tmp_path, capsys):
    flags = [f"--train_file={text_file}", f"--output_dir={tmp_path / 'x'}", f"--minutes={minutes}"]
    refused(command.main, *flags, capsys=capsys, told=["--minutes must be above 0"])


def test_a_trainer_alone_does_not_take_minutes(tmp_path):
    with pytest.raises(ArgumentError, match="needs max_steps"):
        CausalLMTrainer(tiny_model("modern-1m"), CausalLMTrainingArguments(str(tmp_path), minutes=5))


def test_a_trainer_alone_does_not_take_auto(tmp_path):
    with pytest.raises(ArgumentError, match="takes True or False"):
        CausalLMTrainer(tiny_model("modern-1m"), CausalLMTrainingArguments(str(tmp_path), torch_compile="auto"))


def test_minutes_replace_the_steps_of_a_recipe_and_what_depends_on_them(text_file, tmp_path, monkeypatch):
    found = Costs(start=1.75, step=0.1, short_step=0.1, evaluation=2.0, checkpoint=1.0, tokens_per_step=1536)
    monkeypatch.setattr(train, "time_run", lambda *_, **__: found)
    monkeypatch.setattr(train.Measure, "elapsed", lambda _: 0.0)
    places = {"train_file": [str(text_file)], "output_dir": str(tmp_path / "run")}
    run = start_from("quickstart", **places, minutes=1, model_overrides={"hidden_size": 32})
    assert run.args.training.max_steps == 480
    assert run.args.training.eval_steps == 160
    assert run.args.training.short_context_fraction == 0.6


# ---- Runs ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def settings(text_file, tmp_path):
    """A toy run with dropout, whose random numbers must be those of an ordinary run, and with short windows.

    It has a preset: else it would choose its size.
    """
    return toy_run(text_file, tmp_path / "run", eval_sample_length=10, minutes=0.1)


@pytest.fixture
def measured(monkeypatch):
    """A machine on which a step takes a tenth of a second, and nothing has passed when that is known."""

    def takes(*parts, **named):
        found = costs(*parts, **named)

        def time_run(build, args, data, *_, **__):
            return dataclasses.replace(found, tokens_per_step=data.tokens_per_step)

        monkeypatch.setattr(train, "time_run", time_run)

    monkeypatch.setattr(train.Measure, "elapsed", lambda _: 0.0)
    takes(0.1)
    return takes


def measures_again(*_, **__):
    pytest.fail("measured again")


def test_the_number_of_steps_follows_from_what_was_measured(settings, measured):
    run = start_from(**settings)
    assert run.args.training.max_steps == run.data.steps == 48  # 5.88 seconds, and one evaluation
    assert len(run.data.train) == 48 * 8
    assert run.facts["budget"] == {"minutes": 0.1, "seconds_per_step": 0.1, "limited_by_text": False}


def test_a_run_with_minutes_is_an_ordinary_run_with_its_steps(settings, tmp_path):
    record = start_from(**settings).train()  # really measured
    ordinary = record["arguments"]
    assert "minutes" not in ordinary
    assert record["results"]["steps"] == ordinary["max_steps"]
    same = {**settings, "minutes": None, **{name: ordinary[name] for name in FITTED if name in ordinary}}
    same_record = start_from(**{**same, "output_dir": str(tmp_path / "ordinary")}).train()
    assert same_record["results"]["loss"] == record["results"]["loss"]
    assert same_weights(tmp_path / "run", tmp_path / "ordinary")
    assert [path.name for path in (tmp_path / "run").iterdir() if path.name.startswith(".")] == []


def test_a_resumed_run_keeps_its_number_of_steps(settings, measured, tmp_path, monkeypatch):
    whole = start_from(**{**settings, "output_dir": str(tmp_path / "whole")})
    whole.train()
    interrupted(start_from(**settings), 4)
    monkeypatch.setattr(train, "time_run", measures_again)
    resumed = start_from(**settings)
    assert resumed.args.training.max_steps == whole.args.training.max_steps
    record = resumed.train()
    assert record["budget"] == whole.facts["budget"]
    assert record["arguments"] == whole.facts["arguments"]
    assert same_weights(tmp_path / "run", tmp_path / "whole")


def test_a_manifest_holds_what_minutes_determined(settings, measured, tmp_path):
    run = interrupted(start_from(**settings), 4)
    recorded = Checkpoints.recorded_run(tmp_path / "run" / "checkpoint-4")
    assert recorded["minutes"] == 0.1
    assert {name: recorded[name] for name in ("max_steps", "eval_steps")} == {
        "max_steps": run.args.training.max_steps,
        "eval_steps": run.args.training.eval_steps,
    }


def test_other_minutes_are_another_run(settings, measured):
    interrupted(start_from(**settings), 4)
    with pytest.raises(ResumeError, match=r"minutes was 0\.1 and is now 5\.0"):
        start_from(**{**settings, "minutes": 5})
    with pytest.raises(ResumeError, match=r"minutes was 0\.1 and is now None"):
        start_from(**{**settings, "minutes": None, "max_steps": 20})


def test_minutes_do_not_resume_a_run_without(settings, tmp_path):
    interrupted(start_from(**{**settings, "minutes": None, "max_steps": 20}), 4)
    with pytest.raises(ResumeError, match=r"minutes was None and is now 0\.1"):
        start_from(**settings)


def test_a_run_without_evaluations_saves_its_last_weights(settings, measured, tmp_path):
    measured(0.5, evaluation=4.0)
    record = start_from(**settings).train()
    assert record["results"]["best_step"] == record["results"]["steps"] == 11
    assert not [row for row in record["log_history"] if "eval_loss" in row]
    last = load_file(tmp_path / "run" / "checkpoint-11" / "model.safetensors")
    assert all(tensor.equal(last[name]) for name, tensor in load_file(tmp_path / "run" / "model.safetensors").items())


# ---- Compilation ---------------------------------------------------------------------------------------------------


@pytest.fixture
def compiler(monkeypatch):
    """A compiler that pays in runs of more than a minute."""
    monkeypatch.setattr(auto, "compiling_pays", lambda seconds: seconds > 60)


@pytest.mark.parametrize(
    ("length", "step", "pays"),
    [
        ({"minutes": 0.9}, 0.1, False),
        ({"minutes": 1.1}, 0.1, True),
        ({"max_steps": 500}, 0.1, False),
        ({"max_steps": 500}, 0.2, True),
    ],
)
def test_a_run_is_compiled_if_it_is_long_enough(length, step, pays, compiler):
    settings = {"preset": "modern-1m", "torch_compile": "auto", **length}
    facts = Facts(train_tokens=10**6, steps=length.get("max_steps"))
    assert resolve(settings, facts, lambda _: costs(step)).settings["torch_compile"] is pays


def test_what_a_run_costs_that_is_compiled_is_measured_compiled(compiler):
    candidates = []

    def measure(settings):
        candidates.append(settings)
        return costs(0.1)

    resolve({"minutes": 2, "torch_compile": "auto"}, Facts(10**6), measure)
    assert [candidate["torch_compile"] for candidate in candidates] == [False, True]


@pytest.mark.parametrize("was_compiled", [True, False])
def test_a_resumed_run_is_compiled_as_before(was_compiled, settings, monkeypatch):
    settings = {**settings, "minutes": None, "torch_compile": "auto", "max_steps": 8}
    interrupted(start_from(**settings), 4)
    manifest = Path(settings["output_dir"], "checkpoint-4", MANIFEST)
    content = json.loads(manifest.read_text())
    assert content["run"]["torch_compile"] is False
    content["run"]["torch_compile"] = was_compiled
    manifest.write_text(json.dumps(content))
    monkeypatch.setattr(train, "time_run", measures_again)
    assert start_from(**settings).args.training.torch_compile == was_compiled


@pytest.mark.parametrize(("value", "expected"), [("true", True), ("", True), ("auto", "auto"), ("false", False)])
def test_the_flag_is_true_false_or_auto(value, expected):
    parser = Parser(GROUPS, "")
    *_, args = parser.parse(["--torch_compile", *([value] if value else [])])
    assert args.torch_compile == expected


# ---- The text ------------------------------------------------------------------------------------------------------


def test_a_short_text_is_not_passed_over_more_often_in_more_time():
    taught = SIZES[0].taught_passes
    for given, passes in (({"teachers": 0}, SIZES[0].passes), ({}, taught), ({"teachers": 2}, taught)):
        resolved = resolve({"minutes": 60, **given}, Facts(10**5), lambda _: costs(0.01))
        assert resolved.settings["max_steps"] == math.ceil(passes * 10**5 / 1536)
        assert "because more would not help" in resolved.lines[-1]


def test_the_chosen_size_is_measured_again_only_if_dropout_makes_it_another_candidate():
    for tokens, dropouts in ((10**8, [0.0, 0.0]), (4 * 10**5, [0.0, 0.2])):
        seen = []

        def measure(settings, seen=seen):
            fields = json.loads(settings["model_overrides"])
            seen.append(fields["hidden_dropout"])
            return costs(60 / 2200 if fields["hidden_size"] == 128 else 60)

        resolve({"minutes": 1, "teachers": 0}, Facts(tokens), measure)
        assert seen == dropouts


# ---- Runs that choose their size -----------------------------------------------------------------------------------


def small_size(loss: float, per_step: float, passes: float = math.inf, **fields) -> Size:
    fields = {**SMALL, **fields}
    return dataclasses.replace(
        SIZES[2], min_tokens=0, loss_at_one_step=loss, loss_per_log_step=per_step, passes=passes, fields=fields
    )


@pytest.fixture
def open_settings(text_file, tmp_path, monkeypatch, measured):
    """A run of six seconds, in which two small models take a second for ten steps."""
    pair = small_size(1.0, 0.0), small_size(3.1, 0.3, hidden_size=64)  # the lines meet at 1097 steps
    monkeypatch.setattr(sizes, "SIZES", pair)
    return {
        "train_file": [str(text_file)],
        "output_dir": str(tmp_path / "run"),
        "sample_length": 10,
        "eval_sample_length": 0,
        "minutes": 0.1,
    }


def chosen(run) -> dict:
    return json.loads(run.facts["arguments"]["model_overrides"])


@pytest.mark.parametrize("model", [{}, {"preset": "auto"}])
def test_a_run_with_minutes_and_no_model_chooses_its_size(model, open_settings, capsys):
    run = start_from(**open_settings, **model)
    assert "auto: 2 layers of width 32" in capsys.readouterr().out
    assert run.trainer.model.config.hidden_size == 32
    assert run.facts["arguments"].items() >= {**sizes.OPTIMIZER, "preset": "modern-1m"}.items()
    assert run.args.training.max_steps == 48
    assert (run.args.training.lr_scheduler_type, run.args.training.lr_scheduler_kwargs) == ("linear", None)
    assert type(run.trainer.create_optimizer()).__name__ == "MuonWithAdamW"


def test_a_run_ends_before_its_time_if_the_text_is_short(open_settings, monkeypatch, capsys):
    run = start_from(**open_settings)
    tokens, per_step = run.facts["data"]["train_tokens"], run.data.tokens_per_step
    assert run.args.training.max_steps == 48
    monkeypatch.setattr(sizes, "LEAST_STEPS", 1)
    monkeypatch.setattr(sizes, "SIZES", (small_size(1.0, 0.0, passes=20 * per_step / tokens),))
    assert start_from(**open_settings).args.training.max_steps == 20
    assert "because more would not help" in capsys.readouterr().out
    assert start_from(**open_settings).facts["budget"]["limited_by_text"]
    assert start_from(**open_settings, per_device_train_batch_size=6).args.training.max_steps == 40
    assert start_from(**open_settings, preset="modern-1m").args.training.max_steps == 48


def test_more_time_makes_a_larger_model(open_settings):
    assert start_from(**{**open_settings, "minutes": 4}).trainer.model.config.hidden_size == 64


@pytest.mark.parametrize("model", ["preset", "model_name_or_path"])
def test_a_run_with_a_model_keeps_it(model, open_settings, tmp_path):
    name = "modern-1m"
    if model == "model_name_or_path":
        start_from(**{**open_settings, "output_dir": str(tmp_path / "base"), "minutes": None, "max_steps": 1}).train()
        name = str(tmp_path / "base")
    run = start_from(**open_settings, **{model: name})
    assert run.trainer.model.config.hidden_size == 128
    assert "optimizer" not in run.facts["arguments"]


def test_what_is_given_comes_first(open_settings):
    own = {"model_overrides": {"num_hidden_layers": 1}, "learning_rate": 1e-3, "per_device_train_batch_size": 4}
    run = start_from(**open_settings, **own)
    assert chosen(run).items() >= {"hidden_size": 32, "num_hidden_layers": 1}.items()
    assert (run.args.training.learning_rate, run.args.training.per_device_train_batch_size) == (1e-3, 4)
    assert run.args.training.optimizer == "muon"


@pytest.mark.parametrize(
    "own", [{"context_length": 100}, {"model_overrides": {"max_position_embeddings": 100}}, "rows"]
)
def test_windows_are_cut_into_pieces_where_that_is_possible(own, open_settings, tmp_path):
    assert start_from(**open_settings).args.training.short_context == 64
    if own == "rows":
        own = {"train_file": [str(write_rows(tmp_path / "rows.jsonl", ANSWERS))]}
    run = start_from(**{**open_settings, **own})
    assert (run.args.training.short_context, run.args.training.optimizer) == (None, "muon")


@pytest.mark.parametrize(
    "own", [{"min_learning_rate_ratio": 0.05}, {"lr_scheduler_kwargs": {"min_lr_rate": 0.05}}], ids=["ratio", "kwargs"]
)
def test_what_is_given_of_a_schedule_keeps_the_default_one(own, open_settings):
    args = start_from(**open_settings, **own).args.training
    assert (args.lr_scheduler_type, args.lr_scheduler_kwargs) == ("cosine_with_min_lr", {"min_lr_rate": 0.05})
    assert args.optimizer == "muon"


def test_another_optimizer_has_its_own_rates(open_settings):
    run = start_from(**open_settings, optimizer="adamw")
    assert (
        run.args.training.learning_rate,
        run.args.training.weight_decay,
        run.args.training.muon_momentum_warmup,
    ) == (1e-3, 0.1, 0.0)
    assert chosen(run)["hidden_size"] == 32


def test_the_optimizer_that_would_be_chosen_has_the_chosen_rates(open_settings):
    args = start_from(**open_settings, optimizer="muon").args.training
    assert (args.learning_rate, args.muon_momentum_warmup, args.lr_scheduler_type) == (6e-3, 1.0, "linear")


def test_auto_needs_minutes(text_file, tmp_path, capsys):
    output = tmp_path / "run"
    flags = [f"--train_file={text_file}", f"--output_dir={output}", "--preset=auto", "--max_steps=5"]
    refused(command.main, *flags, capsys=capsys, told=["--preset auto needs --minutes"])
    assert not output.exists()


def test_a_run_that_chose_its_size_is_an_ordinary_run(open_settings, tmp_path):
    record = start_from(**open_settings).train()
    start_from(
        **{**record["arguments"], **open_settings, "minutes": None, "output_dir": str(tmp_path / "ordinary")}
    ).train()
    assert same_weights(tmp_path / "run", tmp_path / "ordinary")


def test_a_resumed_run_keeps_its_size(open_settings, tmp_path, monkeypatch):
    start_from(**{**open_settings, "output_dir": str(tmp_path / "whole")}).train()
    interrupted(start_from(**open_settings), 24)
    assert (
        Checkpoints.recorded_run(tmp_path / "run" / "checkpoint-24")["auto"]["model_overrides"].items() >= SMALL.items()
    )
    monkeypatch.setattr(train, "time_run", measures_again)
    monkeypatch.setattr(sizes, "SIZES", (small_size(1.0, 0.0, hidden_size=64),))  # another version's
    start_from(**open_settings).train()
    assert same_weights(tmp_path / "run", tmp_path / "whole")


def test_another_setting_does_not_resume_it(open_settings):
    interrupted(start_from(**open_settings), 24)
    with pytest.raises(ResumeError, match=r"learning_rate was 0\.006 and is now 0\.1"):
        start_from(**open_settings, learning_rate=0.1)


def test_minutes_resume_a_run_that_did_not_choose_its_size(open_settings):
    """As those of versions before, in which minutes alone meant the default model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(auto, "chooses_size", lambda *_: False)
        interrupted(start_from(**open_settings, model_overrides=SMALL), 24)
    run = start_from(**open_settings, model_overrides=SMALL)
    assert run.checkpoint is not None
    assert run.trainer.model.config.hidden_size == 32
    assert run.args.training.optimizer == "adamw"
