"""`training/timing.py`: the parts of a run, timed on its own batches."""

import itertools

import numpy as np
import pytest
import torch
from helpers import tiny_model, trainer_for

from modeling_gptlite.data.encode import RunData
from modeling_gptlite.data.windows import EvaluationWindows, RandomWindows
from modeling_gptlite.training import timing
from modeling_gptlite.training.arguments import CausalLMTrainingArguments


IDS = np.arange(2000, dtype=np.uint16) % 65


def run_data(windows_per_step: int = 4) -> RunData:
    train, validation = RandomWindows(IDS, 32, 10**6 * windows_per_step, seed=0), EvaluationWindows(IDS[:500], 32)
    return RunData(train, validation, 10**6, "\n", {})


@pytest.fixture
def ticking(monkeypatch):
    """A clock that advances by a second whenever it is read; what is not measured takes no time."""
    ticks = itertools.count()
    monkeypatch.setattr(timing, "now", lambda: float(next(ticks)))
    for name in ("STARTING", "TRAINER", "FINISHING", "CHECKPOINT"):
        monkeypatch.setattr(timing, name, 0.0)
    monkeypatch.setattr(timing, "BYTES_PER_SECOND", float("inf"))


def time_run(tmp_path, lengths=(0, 0), **settings):
    args = CausalLMTrainingArguments(
        str(tmp_path / "run"), per_device_train_batch_size=4, per_device_eval_batch_size=4, **settings
    )
    written = []
    costs = timing.time_run(
        lambda: tiny_model("modern-1m"), args, run_data(), lambda model, tokens: written.append(tokens), lengths
    )
    assert not (tmp_path / "run").exists()
    return costs, written


def test_each_part_is_what_the_clock_says(tmp_path, ticking):
    costs, written = time_run(tmp_path, lengths=(timing.SAMPLE_TOKENS, 2 * timing.SAMPLE_TOKENS), minutes=0.05)
    assert written == [1, timing.SAMPLE_TOKENS] * 2
    # Building takes 1, the first step 1, the sample before it 1; the clock is read once more after three other steps.
    assert costs.start == 3
    assert costs.step == costs.short_step == pytest.approx(2 / 3)
    assert costs.evaluation == 4 * 1 + 1  # four batches and a sample
    assert costs.finish == 4 * 1 + 2
    assert (costs.sample, costs.last_sample) == (1, 2)
    assert costs.tokens_per_step == 4 * 32


def test_short_windows_are_timed_apart(tmp_path, ticking):
    costs, written = time_run(tmp_path, minutes=0.05, short_context=16)
    assert written == []
    assert costs.start == 3
    assert costs.short_step == costs.step


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "muon", "gradient_accumulation_steps": 2},
        {"optimizer": "trainer", "optim": "adafactor", "label_smoothing_factor": 0.1},
        {"precision": "bf16", "gradient_checkpointing": True},
    ],
    ids=["muon", "the trainer's", "bf16"],
)
def test_every_kind_of_training_is_timed(settings, tmp_path):
    costs, _ = time_run(tmp_path, lengths=(1, 1), minutes=0.01, **settings)
    assert all(value > 0 for value in vars(costs).values())


def test_steps_are_those_of_the_trainer(tmp_path):
    """The weights after some steps are those of a run: the same batches, gradients, clipping and optimizer."""
    models = [tiny_model("modern-1m"), tiny_model("modern-1m")]
    settings = {"gradient_accumulation_steps": 2, "optimizer": "muon", "lr_scheduler_type": "constant"}
    trainer = trainer_for(models[0], tmp_path, 4, **settings)
    data = RunData(trainer.train_dataset, trainer.eval_dataset, 4, "\n", {})
    steps = timing._Steps(models[1], None, timing._optimizer(models[1], trainer.args), trainer.args, data)
    for _ in range(4):
        steps.take(None)
    trainer.train()
    pairs = zip(models[0].parameters(), models[1].parameters(), strict=True)
    assert all(torch.allclose(trained, timed, atol=1e-5) for trained, timed in pairs)
