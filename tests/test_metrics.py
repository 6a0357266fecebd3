"""Validation loss and what follows from it, against arithmetic done another way."""

import math

import numpy as np
import pytest
import torch
from helpers import tiny_model

from modeling_gptlite.data.windows import EvaluationWindows
from modeling_gptlite.training.metrics import (
    bits_per_character,
    evaluate_loss,
    mean_loss,
    perplexity,
    token_losses,
    window_losses,
)


CONTEXT = 16


def opinionated_model(**overrides):
    """A model whose losses differ widely from token to token, so that one target more or less shows."""
    return tiny_model("modern-1m", initializer_range=0.5, **overrides)


def some_ids(tokens):
    return np.random.default_rng(0).integers(65, size=tokens).astype(np.uint16)


@torch.no_grad()
def plain_loss(model, ids):
    """Mean -ln p of every id but the first, given those before it in its window: one window, one target at a time."""
    model, ids = model.eval().double(), torch.from_numpy(ids.astype(np.int64))
    losses = []
    for start in range(0, len(ids) - 1, CONTEXT):
        inputs, targets = ids[start:-1][:CONTEXT], ids[start + 1 :][:CONTEXT]
        log_probabilities = model(input_ids=inputs[None]).logits[0].log_softmax(-1)
        losses += [-log_probabilities[position, target].item() for position, target in enumerate(targets)]
    assert len(losses) == len(ids) - 1
    return sum(losses) / len(losses)


@pytest.mark.parametrize("tokens", [2, 16, 17, 18, 33, 100])
def test_the_loss_is_the_mean_over_every_target_of_the_split(tokens):
    ids = some_ids(tokens)
    loss = evaluate_loss(opinionated_model(), EvaluationWindows(ids, CONTEXT))
    assert loss == pytest.approx(plain_loss(opinionated_model(), ids), rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 1000])
def test_the_loss_does_not_depend_on_the_batch_size(batch_size):
    windows = EvaluationWindows(some_ids(100), CONTEXT)
    assert len(windows) == 7
    model = opinionated_model()
    assert evaluate_loss(model, windows, batch_size) == pytest.approx(evaluate_loss(model, windows, 2), rel=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_uses_no_dropout_and_leaves_the_mode_as_it_was(training):
    windows = EvaluationWindows(some_ids(50), CONTEXT)
    model = opinionated_model(hidden_dropout=0.5).train(training)
    assert evaluate_loss(model, windows) == pytest.approx(evaluate_loss(opinionated_model(), windows))
    assert all(module.training is training for module in model.modules())


@pytest.mark.parametrize("vocab_size", [2, 65])
def test_a_model_that_cannot_tell_tokens_apart_has_the_loss_of_a_fair_guess(vocab_size):
    model = tiny_model("modern-1m", vocab_size=vocab_size)
    torch.nn.init.zeros_(model.lm_head.weight)
    loss = evaluate_loss(model, EvaluationWindows(some_ids(50) % vocab_size, CONTEXT))
    assert loss == pytest.approx(math.log(vocab_size))
    assert perplexity(loss) == pytest.approx(vocab_size)


def test_window_losses_are_sums_over_the_targets_that_count():
    logits = torch.tensor([0.5, 0.25, 0.125, 0.125]).log().expand(2, 3, 4)
    targets = torch.tensor([[0, 1, 2], [3, -100, -100]])
    losses, counts = window_losses(*token_losses(logits, targets), targets)
    assert (losses / math.log(2)).tolist() == pytest.approx([1 + 2 + 3, 3])
    assert counts.tolist() == [3, 1]


def test_half_precision_logits_are_not_summed_in_half_precision():
    targets = torch.zeros(1, 1000, dtype=torch.int64)
    losses, counts = window_losses(*token_losses(torch.zeros(1, 1000, 65, dtype=torch.bfloat16), targets), targets)
    assert losses.item() == pytest.approx(1000 * math.log(65), rel=1e-6)
    assert counts.item() == 1000


def test_the_mean_weighs_windows_by_their_targets_and_does_not_lose_small_ones():
    first = torch.tensor([2.0**24, 1.0]), torch.tensor([3.0, 0.0])
    second = torch.tensor([1.0]), torch.tensor([1.0])
    assert mean_loss([first, second]) == (2**24 + 2) / 4


@pytest.mark.parametrize(("loss", "expected"), [(0.0, 1.0), (math.log(8), 8.0), (1.0, math.e), (1e4, math.inf)])
def test_perplexity_is_e_to_the_loss(loss, expected):
    assert perplexity(loss) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("loss", "tokens", "characters", "expected"),
    [(math.log(2), 99, 99, 1.0), (math.log(8), 20, 60, 1.0), (1.5, 300, 100, 6.4921276840)],
)
def test_bits_per_character_spreads_the_bits_of_the_tokens_over_the_characters(loss, tokens, characters, expected):
    assert bits_per_character(loss, tokens, characters) == pytest.approx(expected)
