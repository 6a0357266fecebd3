"""What a person sees of a training: samples while it goes on, the picture of the run, other people's dashboards."""

import json
import random
import shutil

import numpy as np
import pytest
import torch
from conftest import tiny_model, train_tiny
from safetensors.torch import load_file
from test_commands import refused

from modeling_gptlite.training import plots
from modeling_gptlite.training.callbacks import SAMPLES_FILE, render_samples, write_sample
from scripts import train
from tokenization import build_char_tokenizer


def record(folder):
    return json.loads((folder / "run.json").read_text())


# ---- Samples -------------------------------------------------------------------------------------------------------


def test_a_run_shows_and_keeps_a_sample_per_evaluation(text_file, tmp_path, capsys):
    train_tiny(text_file, tmp_path / "run", "--sample_prompt=12 green", "--eval_sample_length=30")
    rows = [row for row in record(tmp_path / "run")["log_history"] if "sample" in row]
    assert [row["step"] for row in rows] == [0, 10, 20]
    assert ["eval_loss" in row for row in rows] == [False, True, True]
    page, out = (tmp_path / "run" / SAMPLES_FILE).read_text(), capsys.readouterr().out
    for row in rows:
        assert row["sample"].startswith("12 green")
        assert len(row["sample"]) >= len("12 green") + 30
        first_line = f"    {row['sample'].splitlines()[0]}"
        assert first_line in page
        assert first_line in out
    assert f"## Step 20, validation loss {rows[-1]['eval_loss']:.4f}" in page
    assert len({row["sample"] for row in rows}) > 1


def test_samples_do_not_change_the_training(trained, text_file, tmp_path):
    train_tiny(text_file, tmp_path / "run", "--eval_sample_length=0")
    assert not (tmp_path / "run" / SAMPLES_FILE).exists()
    without, with_samples = load_file(tmp_path / "run" / "model.safetensors"), load_file(trained / "model.safetensors")
    assert all(torch.equal(without[name], with_samples[name]) for name in without)
    logs = [
        [{k: row.get(k) for k in ("step", "loss", "eval_loss", "grad_norm")} for row in record(folder)["log_history"]]
        for folder in (tmp_path / "run", trained)
    ]
    assert logs[0] == logs[1][1:]  # the first row is the untrained sample's


def test_with_dropout_samples_do_not_change_the_training_either(text_file, tmp_path):
    """Dropout draws from the global generator at every step, so that a sample that touches it would show."""
    overrides = '{"hidden_size": 32, "num_hidden_layers": 1, "max_position_embeddings": 32, "hidden_dropout": 0.2}'
    for length in (0, 20):
        train_tiny(
            text_file, tmp_path / str(length), f"--model_overrides={overrides}", f"--eval_sample_length={length}"
        )
    without, with_samples = (load_file(tmp_path / length / "model.safetensors") for length in ("0", "20"))
    assert all(torch.equal(without[name], with_samples[name]) for name in without)


def test_a_resumed_run_keeps_the_samples_from_before(trained, text_file, tmp_path):
    shutil.copytree(trained / "checkpoint-10", tmp_path / "run" / "checkpoint-10")
    train_tiny(text_file, tmp_path / "run", "--resume_from_checkpoint=true")
    assert (tmp_path / "run" / SAMPLES_FILE).read_text() == (trained / SAMPLES_FILE).read_text()


@pytest.mark.parametrize("training", [True, False])
def test_a_sample_leaves_no_trace(training):
    tokenizer = build_char_tokenizer("abcdefg \n")
    model = tiny_model("modern-1m", vocab_size=len(tokenizer), hidden_dropout=0.5).train(training)
    model.config.use_cache = False
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    texts = [write_sample(model, tokenizer, "a", 40, seed) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]
    assert (model.training, model.config.use_cache) == (training, False)


def test_a_sample_has_its_length_whatever_the_trainer_made_the_end_of_text():
    tokenizer = build_char_tokenizer("abcdefg \n")
    model = tiny_model("modern-1m", vocab_size=len(tokenizer))
    model.generation_config.eos_token_id = list(range(len(tokenizer)))
    assert len(tokenizer(write_sample(model, tokenizer, "a", 20, seed=1))["input_ids"]) == 1 + 20


def test_the_page_of_samples_holds_no_character_that_a_terminal_obeys():
    page = render_samples(
        [{"step": 0, "sample": "a\x1b[2Jb\n```\n\n<b>"}, {"step": 1_000, "eval_loss": 1.5, "sample": "c"}]
    )
    assert "\x1b" not in page
    assert "    a\ufffd[2Jb\n    ```\n    \n    <b>\n" in page
    assert "## Step 0, untrained\n" in page
    assert "## Step 1,000, validation loss 1.5000\n" in page


@pytest.mark.parametrize("name", ["sample_length", "eval_sample_length"])
def test_a_negative_length_is_refused(name, text_file, tmp_path, capsys):
    refused(
        train.main,
        f"--train_file={text_file}",
        f"--{name}=-1",
        f"--output_dir={tmp_path / 'x'}",
        capsys=capsys,
        told=[name],
    )
    assert not (tmp_path / "x").exists()


# ---- The picture ---------------------------------------------------------------------------------------------------


LOG = [
    {"step": 0, "sample": "x"},
    {"step": 10, "loss": 2.5, "learning_rate": 1e-3, "grad_norm": 1.5},
    {"step": 10, "eval_loss": 2.4},
    {"step": 20, "loss": 1.5, "learning_rate": 5e-4, "grad_norm": 1.0},
    {"step": 20, "eval_loss": 1.7},
    {"step": 30, "eval_loss": 1.8},
]


@pytest.fixture
def figure(monkeypatch):
    """The figure that `plot_run` saves and closes."""
    from matplotlib.figure import Figure

    saved, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, path: (saved.append(self), save(self, path)))
    return lambda: saved[-1]


def test_the_picture_shows_the_losses_the_best_and_what_others_reached(tmp_path, figure):
    plots.plot_run(LOG, 100, "run", tmp_path / "loss.png", {"somebody": 1.6})
    losses, rate, norm = figure().axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in losses.lines}
    assert lines["training"] == [[1000, 2.5], [2000, 1.5]]
    assert lines["validation"] == [[1000, 2.4], [2000, 1.7], [3000, 1.8]]
    assert {text.get_text() for text in losses.texts} == {"best 1.7000", "somebody: 1.6"}
    assert rate.lines[0].get_ydata().tolist() == [1e-3, 5e-4]
    assert norm.lines[0].get_ydata().tolist() == [1.5, 1.0]
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_without_any_loss_has_a_picture(tmp_path):
    plots.plot_run([], 100, "run", tmp_path / "loss.png")
    assert (tmp_path / "loss.png").stat().st_size > 1000


def test_published_levels_belong_to_the_same_text_read_by_characters():
    data = {
        "sha256": plots.TINYSHAKESPEARE_SHA256,
        "train_tokens": 1_003_854,
        "train_characters": 1_003_854,
        "validation_characters": 111_540,
    }
    assert set(plots.published_levels(data).values()) == {1.4697, 1.898}
    for change in ({"sha256": "0"}, {"train_tokens": 500_000}, {"validation_characters": 55_770}):
        assert plots.published_levels(data | change) == {}


# ---- Dashboards ----------------------------------------------------------------------------------------------------


def test_tensorboard_gets_the_losses(text_file, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train_tiny(text_file, tmp_path / "run", "--report_to=tensorboard")
    (folder,) = (tmp_path / "run" / "runs").iterdir()
    events = EventAccumulator(str(folder)).Reload()
    logged = [(event.step, event.value) for event in events.Scalars("eval/loss")]
    expected = [
        (row["step"], row["eval_loss"]) for row in record(tmp_path / "run")["log_history"] if "eval_loss" in row
    ]
    assert logged == [(step, pytest.approx(loss)) for step, loss in expected]
    assert {"train/loss", "train/grad_norm", "train/learning_rate"} <= set(events.Tags()["scalars"])


def test_a_dashboard_that_is_not_installed_or_unknown_is_named(text_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("transformers.integrations.integration_utils.is_wandb_available", lambda: False)
    flags = [f"--train_file={text_file}", f"--output_dir={tmp_path / 'x'}"]
    refused(train.main, *flags, "--report_to=wandb", capsys=capsys, told=["wandb", "pip install wandb"])
    refused(train.main, *flags, "--report_to=tensorbord", capsys=capsys, told=["tensorbord", "tensorboard"])
    assert not (tmp_path / "x").exists()
