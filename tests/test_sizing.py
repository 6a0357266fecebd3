"""`--preset auto`: the size of a model from the text, the minutes and the speed of the machine."""

import json

import pytest
from helpers import ANSWERS, interrupted, refused, same_weights, write_rows

from benchmarks.common import RESULTS
from modeling_gptlite.runs import budget, sizing
from modeling_gptlite.runs.budget import Costs
from modeling_gptlite.runs.identity import ResumeError
from modeling_gptlite.runs.sizing import SIZES, Size, choose
from modeling_gptlite.runs.start import start_from
from modeling_gptlite.training.checkpointing import Checkpoints
from scripts import train


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 128}


# ---- The table -----------------------------------------------------------------------------------------------------


def chosen_size(tokens: int, *steps: float) -> dict:
    """What is chosen if the models of the table take so many steps in the time, the smallest first."""
    measured = iter(steps)
    return choose(lambda size: (next(measured), tokens))["model_overrides"]


@pytest.fixture
def record() -> dict:
    return json.loads((RESULTS / "budgets-avx512-amx.json").read_text(encoding="utf-8"))["results"]


@pytest.mark.parametrize("minutes", [5, 20])
def test_the_table_says_what_was_measured(minutes, record):
    models = "auto, which chose modern-1m", "6 layers of width 192", "modern-10m"
    cells = [record[f"code, {minutes} minutes, {model}"] for model in models]
    steps, losses = [cell["steps"] for cell in cells], [cell["validation_loss"] for cell in cells]
    assert [size.loss(taken) for size, taken in zip(SIZES, steps, strict=True)] == pytest.approx(losses, abs=0.002)
    best = SIZES[losses.index(min(losses))]
    assert chosen_size(18 * 10**6, *steps) == {**best.fields, "hidden_dropout": 0.0}


@pytest.mark.parametrize(
    ("small", "large", "rate"),
    [
        ("5 minutes, auto", "5 minutes, modern-10m", 0.1),
        ("20 minutes, auto, which chose modern-1m with dropout 0.2", "20 minutes, modern-10m, dropout 0.2", 0.2),
    ],
)
def test_on_tiny_shakespeare_the_best_size_is_chosen(small, large, rate, record):
    cells = [record[f"tinyshakespeare, {cell}"] for cell in (small, large)]
    best = (SIZES[0], SIZES[2])[cells[1]["validation_loss"] < cells[0]["validation_loss"]]
    fields = chosen_size(1_003_854, *(cell["steps"] for cell in cells))
    assert fields == {**best.fields, "hidden_dropout": rate}


def test_a_short_text_is_not_for_a_large_model_however_much_time_there_is(record):
    models = "auto", "modern-1m", "modern-10m, dropout 0.2"
    cells = {model: record[f"python-docs, 20 minutes, {model}"] for model in models}
    assert min(cells, key=lambda model: cells[model]["validation_loss"]) == "auto"
    auto, *fixed = cells.values()
    tokens = auto["steps"] * SIZES[0].tokens_per_step // sizing.PASSES_OF_SHORT
    assert chosen_size(tokens, *(cell["steps"] for cell in fixed)) == {**SIZES[0].fields, "hidden_dropout": 0.1}


@pytest.mark.parametrize("row", range(1, len(SIZES)))
def test_a_larger_model_needs_its_text(row):
    def chosen_for(tokens: int) -> dict:
        fast = SIZES[0], SIZES[row]
        return choose(lambda size: (10**6 if size in fast else 1, tokens))["model_overrides"]

    assert chosen_for(SIZES[row].text).items() >= SIZES[row].fields.items()
    assert chosen_for(SIZES[row].text - 1).items() >= SIZES[0].fields.items()


def test_larger_models_are_not_measured_in_vain():
    measured = []
    choose(lambda size: (measured.append(size), (900, 10**9))[1])
    assert measured == [SIZES[0]]


@pytest.mark.parametrize(
    ("row", "steps", "rate"), [(0, 1000, 0.0), (0, 3000, 0.1), (0, 20_000, 0.2), (2, 842, 0.1), (2, 1828, 0.2)]
)
def test_dropout_grows_with_the_passes_over_the_text(row, steps, rate, monkeypatch):
    monkeypatch.setattr(sizing, "SIZES", (SIZES[row],))
    assert chosen_size(10**6, steps)["hidden_dropout"] == rate


def test_a_short_text_is_not_passed_over_more_often_in_more_time():
    assert chosen_size(10**5, 10**6)["hidden_dropout"] == 0.1


# ---- Runs ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def settings(text_file, tmp_path, monkeypatch):
    """A run of six seconds, in which two small models take a second for ten steps."""
    large = {**SMALL, "hidden_size": 64}
    sizes = Size(0, 1.0, 0.0, {}, SMALL), Size(0, 3.1, 0.3, {}, large)  # the lines meet at 1097 steps
    monkeypatch.setattr(sizing, "SIZES", sizes)
    costs = Costs(start=0.0, step=0.1, short_step=0.1, evaluation=1.0, checkpoint=0.0)
    monkeypatch.setattr(budget, "measure", lambda *_: costs)
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
def test_a_run_with_minutes_and_no_model_chooses_its_size(model, settings, capsys):
    run = start_from(**settings, **model)
    assert "auto: 2 layers of width 32" in capsys.readouterr().out
    assert run.trainer.model.config.hidden_size == 32
    assert run.facts["arguments"].items() >= {**sizing.OPTIMIZER, "preset": "modern-1m"}.items()
    assert run.args.max_steps == 48
    assert (run.args.lr_scheduler_type, run.args.lr_scheduler_kwargs) == ("linear", {})
    assert type(run.trainer.create_optimizer()).__name__ == "MuonWithAdamW"


def test_a_run_ends_before_its_time_if_the_text_is_short(settings, monkeypatch, capsys):
    run = start_from(**settings)
    tokens, per_step = run.facts["data"]["train_tokens"], run.tokens_per_step
    assert run.args.max_steps == 48
    monkeypatch.setattr(sizing, "LEAST_STEPS", 1)
    monkeypatch.setattr(sizing, "PASSES_OF_SHORT", 20 * per_step / tokens)
    assert start_from(**settings).args.max_steps == 20
    assert "because more would not help" in capsys.readouterr().out
    assert start_from(**settings, per_device_train_batch_size=6).args.max_steps == 40
    assert start_from(**settings, preset="modern-1m").args.max_steps == 48
    monkeypatch.setattr(sizing, "SHORT", tokens)
    assert start_from(**settings).args.max_steps == 48


def test_a_very_short_text_is_still_learned():
    assert sizing.most_steps(tokens=1000, tokens_per_step=1536) == sizing.LEAST_STEPS


def test_more_time_makes_a_larger_model(settings):
    assert start_from(**{**settings, "minutes": 4}).trainer.model.config.hidden_size == 64


@pytest.mark.parametrize("model", ["preset", "model_name_or_path"])
def test_a_run_with_a_model_keeps_it(model, settings, tmp_path):
    name = "modern-1m"
    if model == "model_name_or_path":
        start_from(**{**settings, "output_dir": str(tmp_path / "base"), "minutes": None, "max_steps": 1}).train()
        name = str(tmp_path / "base")
    run = start_from(**settings, **{model: name})
    assert run.trainer.model.config.hidden_size == 128
    assert "optimizer" not in run.facts["arguments"]


def test_what_is_given_comes_first(settings):
    own = {"model_overrides": {"num_hidden_layers": 1}, "learning_rate": 1e-3, "per_device_train_batch_size": 4}
    run = start_from(**settings, **own)
    assert chosen(run).items() >= {"hidden_size": 32, "num_hidden_layers": 1}.items()
    assert (run.args.learning_rate, run.args.per_device_train_batch_size) == (1e-3, 4)
    assert run.args.optimizer == "muon"


@pytest.mark.parametrize(
    "own", [{"context_length": 100}, {"model_overrides": {"max_position_embeddings": 100}}, "rows"]
)
def test_windows_are_cut_into_pieces_where_that_is_possible(own, settings, tmp_path):
    assert start_from(**settings).args.short_context == 64
    if own == "rows":
        own = {"train_file": [str(write_rows(tmp_path / "rows.jsonl", ANSWERS))]}
    run = start_from(**{**settings, **own})
    assert (run.args.short_context, run.args.optimizer) == (None, "muon")


@pytest.mark.parametrize(
    "own", [{"min_learning_rate_ratio": 0.05}, {"lr_scheduler_kwargs": {"min_lr_rate": 0.05}}], ids=["ratio", "kwargs"]
)
def test_what_is_given_of_a_schedule_keeps_the_default_one(own, settings):
    args = start_from(**settings, **own).args
    assert (args.lr_scheduler_type, args.lr_scheduler_kwargs) == ("cosine_with_min_lr", {"min_lr_rate": 0.05})
    assert args.optimizer == "muon"


def test_another_optimizer_has_its_own_rates(settings):
    run = start_from(**settings, optimizer="adamw")
    assert (run.args.learning_rate, run.args.weight_decay, run.args.muon_momentum_warmup) == (1e-3, 0.1, 0.0)
    assert chosen(run)["hidden_size"] == 32


def test_auto_needs_minutes(text_file, tmp_path, capsys):
    output = tmp_path / "run"
    flags = [f"--train_file={text_file}", f"--output_dir={output}", "--preset=auto", "--max_steps=5"]
    refused(train.main, *flags, capsys=capsys, told=["--preset auto needs --minutes"])
    assert not output.exists()


def test_a_run_that_chose_its_size_is_an_ordinary_run(settings, tmp_path):
    record = start_from(**settings).train()
    start_from(**{**record["arguments"], **settings, "minutes": None, "output_dir": str(tmp_path / "ordinary")}).train()
    assert same_weights(tmp_path / "run", tmp_path / "ordinary")


def test_a_resumed_run_keeps_its_size(settings, tmp_path, monkeypatch):
    start_from(**{**settings, "output_dir": str(tmp_path / "whole")}).train()
    interrupted(start_from(**settings), 24)
    assert (
        Checkpoints.recorded_run(tmp_path / "run" / "checkpoint-24")["auto"]["model_overrides"].items() >= SMALL.items()
    )
    monkeypatch.setattr(budget, "measure", lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr(sizing, "SIZES", (Size(0, 1.0, 0.0, {}, {**SMALL, "hidden_size": 64}),))  # another version's
    start_from(**settings).train()
    assert same_weights(tmp_path / "run", tmp_path / "whole")


def test_another_setting_does_not_resume_it(settings):
    interrupted(start_from(**settings), 24)
    with pytest.raises(ResumeError, match=r"learning_rate was 0\.006 and is now 0\.1"):
        start_from(**settings, learning_rate=0.1)


def test_minutes_resume_a_run_that_did_not_choose_its_size(settings):
    """As those of versions before, in which minutes alone meant the default model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sizing, "is_auto", lambda *_: False)
        interrupted(start_from(**settings, model_overrides=SMALL), 24)
    run = start_from(**settings, model_overrides=SMALL)
    assert run.checkpoint is not None
    assert run.trainer.model.config.hidden_size == 32
    assert run.args.optimizer == "adamw"
