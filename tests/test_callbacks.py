"""What is shown while a model trains, and how training ends early: by a signal, or because it diverged."""

import io
import json
import math
import os
import random
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from helpers import refused, same_weights, tiny_model, train_tiny
from transformers import Trainer, TrainerState

from modeling_gptlite.runs import run as runs_run
from modeling_gptlite.training.callbacks import SAMPLES_FILE, LiveLine, StopOnSignal, render_samples, say, write_sample
from modeling_gptlite.training.checkpointing import Checkpoints
from modeling_gptlite.training.trainer import CausalLMTrainer
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
    last = record(tmp_path / "run")["sample"].splitlines()
    assert page.rstrip().splitlines()[-len(last) :] == [f"    {line}".rstrip() for line in last]


def test_samples_do_not_change_the_training(text_file, tmp_path):
    """Dropout draws from the global generator at every step, so that a sample that touches it would show."""
    overrides = '{"hidden_size": 32, "num_hidden_layers": 1, "max_position_embeddings": 32, "hidden_dropout": 0.2}'
    for length in ("0", "20"):
        flags = [f"--model_overrides={overrides}", f"--eval_sample_length={length}"]
        train_tiny(text_file, tmp_path / length, *flags)
    assert (tmp_path / "0" / SAMPLES_FILE).read_text().count("## Step") == 1  # of the finished model
    assert same_weights(tmp_path / "0", tmp_path / "20")
    without, with_samples = (
        [[row.get(key) for key in ("step", "loss", "eval_loss", "grad_norm")] for row in record(folder)["log_history"]]
        for folder in (tmp_path / "0", tmp_path / "20")
    )
    assert without == with_samples[1:]  # the first row is the untrained sample's


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


@pytest.mark.parametrize("eos", ["d", None])
def test_a_sample_without_a_prompt_needs_no_token_that_begins_texts(eos):
    tokenizer = build_char_tokenizer("abcdefg \n", special_tokens=False)
    tokenizer.bos_token, tokenizer.eos_token = None, eos
    model = tiny_model("modern-1m", vocab_size=len(tokenizer))
    assert write_sample(model, tokenizer, "", 5, seed=1)[0] == (eos or "\n")


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


# ---- The status line -----------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(stream, monkeypatch, columns=80, logs=({"loss": 2.0}, {"eval_loss": 1.5}, {"loss": 1.0})):
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((columns, 24)))
    line, state = LiveLine(tokens_per_step=100, stream=stream), TrainerState(max_steps=300)
    line.on_train_begin(None, state, None)
    for step, entry in enumerate(logs, start=1):
        state.global_step = 100 * step
        line.on_log(None, state, None, logs=entry)
    line.on_train_end(None, state, None)
    return stream.getvalue()


def test_on_a_terminal_one_line_is_overwritten_and_cut_to_the_width(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    text = shown(Terminal(), monkeypatch, columns=30)
    assert text.count("\r\x1b[K") == 3
    assert text.count("\n") == 2  # after the evaluation, and at the end
    assert max(len(line) for part in text.split("\x1b[K") for line in part.split("\n")) <= 30


@pytest.mark.parametrize(("stream", "term"), [(io.StringIO, "xterm"), (Terminal, "dumb")])
def test_elsewhere_there_is_a_line_per_evaluation_without_escapes(stream, term, monkeypatch):
    monkeypatch.setenv("TERM", term)
    (line,) = shown(stream(), monkeypatch).splitlines()
    assert line.startswith("step 200/300 | loss 2.0000 | val 1.5000 (-0.50) | ")


def test_elsewhere_a_line_appears_every_30_seconds_between_evaluations(monkeypatch):
    now = 0.0
    monkeypatch.setattr("time.perf_counter", lambda: now)

    def logs():
        nonlocal now
        for _ in range(8):
            now += 16
            yield {"loss": 2.0}

    lines = shown(io.StringIO(), monkeypatch, logs=logs()).splitlines()
    assert [line.split()[1] for line in lines] == ["200/300", "400/300", "600/300", "800/300"]


def test_what_a_stream_cannot_encode_is_escaped_in_a_program_too():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    say("🎉 grün \ud83c", stream=stream)
    assert stream.buffer.getvalue() == "\\U0001f389 grün \\ud83c\n".encode("cp1252")


# ---- Divergence ----------------------------------------------------------------------------------------------------


WILD = ["--learning_rate=1e9", "--muon_learning_rate=1e9", "--max_grad_norm=0", "--warmup_steps=0"]


def test_training_ends_at_the_first_loss_that_is_not_finite(text_file, tmp_path, capsys):
    told = ["training loss is nan at step ", "lower --learning_rate"]
    flags = [*WILD, "--eval_strategy=no", "--save_strategy=no", "--load_best_model_at_end=false"]
    refused(lambda _: train_tiny(text_file, tmp_path, *flags), capsys=capsys, told=told)
    assert not (tmp_path / "run.json").exists()
    assert not (tmp_path / "model.safetensors").exists()


def test_the_checkpoint_before_it_diverged_is_kept(trained, text_file, tmp_path, monkeypatch, capsys):
    def diverged(self, *args, **kwargs):
        loss = step(self, *args, **kwargs)
        return loss * math.nan if self.state.global_step > 12 else loss

    step = Trainer.training_step
    monkeypatch.setattr(Trainer, "training_step", diverged)
    refused(lambda _: train_tiny(text_file, tmp_path), capsys=capsys, told=["training loss is nan at step 15"])
    assert [path.name for path in Checkpoints(tmp_path).all()] == ["checkpoint-10"]
    monkeypatch.undo()
    train_tiny(text_file, tmp_path)
    assert same_weights(tmp_path, trained)


def test_a_run_that_logs_no_loss_does_not_finish_with_weights_that_are_not_finite(text_file, tmp_path, capsys):
    flags = [*WILD, "--logging_strategy=no", "--eval_strategy=no", "--save_strategy=no"]
    train = lambda _: train_tiny(text_file, tmp_path, *flags, "--load_best_model_at_end=false")  # noqa: E731
    refused(train, capsys=capsys, told=["validation loss is nan at step 20"])
    assert not (tmp_path / "run.json").exists()


# ---- Signals -------------------------------------------------------------------------------------------------------


HANGUP = pytest.param(1, marks=pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, HANGUP])
def test_a_signal_ends_training_with_a_checkpoint_to_resume_from(number, trained, text_file, tmp_path, monkeypatch):
    step = Trainer.training_step

    def interrupted(self, *args, **kwargs):
        if self.state.global_step == 13:
            signal.raise_signal(number)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", interrupted)
    with pytest.raises(SystemExit, match=str(128 + number)):
        train_tiny(text_file, tmp_path)
    assert [path.name for path in Checkpoints(tmp_path).all()] == ["checkpoint-14", "checkpoint-10"]
    monkeypatch.undo()
    train_tiny(text_file, tmp_path)
    assert same_weights(tmp_path, trained)


WHERE = {
    "before the first step": (Trainer, "_inner_training_loop", ["checkpoint-1"]),
    "while the best weights are loaded": (CausalLMTrainer, "_load_best_model", ["checkpoint-20", "checkpoint-10"]),
    "while the finished model is evaluated": (runs_run, "evaluate_loss", ["checkpoint-20", "checkpoint-10"]),
    "while it is saved": (runs_run, "write_run", ["checkpoint-20", "checkpoint-10"]),
}


@pytest.mark.parametrize(("owner", "name", "left"), WHERE.values(), ids=WHERE)
def test_ctrl_c_is_never_lost_and_leaves_nothing_half_written(
    owner, name, left, trained, text_file, tmp_path, monkeypatch, capsys
):
    work = getattr(owner, name)

    def interrupted(*args, **kwargs):
        signal.raise_signal(signal.SIGINT)
        return work(*args, **kwargs)

    monkeypatch.setattr(owner, name, interrupted)
    with pytest.raises(SystemExit, match="130"):
        train_tiny(text_file, tmp_path)
    assert [path.name for path in Checkpoints(tmp_path).all()] == left
    assert capsys.readouterr().out.splitlines()[-1].startswith("stopped ")
    assert (tmp_path / "run.json").exists() == (len(left) == 2)
    assert not (tmp_path / ".saving").exists()
    monkeypatch.undo()
    if len(left) == 1:
        train_tiny(text_file, tmp_path)
    assert same_weights(tmp_path, trained)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
def test_under_nohup_a_closed_terminal_does_not_end_training():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopOnSignal() as stop:
            signal.raise_signal(signal.SIGHUP)
        assert stop.received == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_ctrl_c_ends_the_block_and_the_handlers_are_restored():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    stop = StopOnSignal()
    with stop:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert stop.received == signal.SIGINT
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_in_another_thread_training_is_not_stopped_by_signals():
    with ThreadPoolExecutor() as threads, threads.submit(StopOnSignal().__enter__).result() as stop:
        assert stop.received == 0
