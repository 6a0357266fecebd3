"""Validation loss and what follows from it, against arithmetic done another way."""

import math

import numpy as np
import pytest
import torch
from helpers import tiny_model
from transformers import AutoConfig, AutoModelForCausalLM

from modeling_gptlite.data.windows import EvaluationWindows
from modeling_gptlite.evaluation.statistics import score_tokens
from modeling_gptlite.training import metrics
from modeling_gptlite.training.metrics import (
    LOGITS,
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


# ---- Large vocabularies --------------------------------------------------------------------------------------------

VOCAB = 50_000
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.5,
}
PLAIN = ["gptlite", "llama", "gpt2", "qwen3", "gpt_neox", "lora"]


def model_of_class(name, vocab_size=VOCAB):
    torch.manual_seed(0)
    if name == "gptlite":
        return opinionated_model(vocab_size=vocab_size, hidden_size=32, max_position_embeddings=64)
    kind = {"lora": "llama"}.get(name, name)
    config = AutoConfig.for_model(kind, vocab_size=vocab_size, bos_token_id=0, eos_token_id=0, pad_token_id=0, **SIZES)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    if name != "lora":
        return model
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(target_modules=["q_proj", "lm_head"], init_lora_weights=False)
    return peft.get_peft_model(model, lora)


@pytest.fixture
def largest(monkeypatch):
    """The largest number of logits that each layer of a vocabulary's size returned."""
    sizes, forward = [], torch.nn.functional.linear

    def watched(x, weight, bias=None):
        output = forward(x, weight, bias)
        if output.shape[-1] == VOCAB:
            sizes.append(output.numel())
        return output

    monkeypatch.setattr(torch.nn.functional, "linear", watched)
    return sizes


@torch.no_grad()
def scores_of_whole_logits(model, windows, batch_size):
    for start in range(0, len(windows), batch_size):
        batch = windows.__getitems__(range(start, min(start + batch_size, len(windows))))
        targets = batch["shift_labels"]
        log_p = model.eval()(input_ids=batch["input_ids"]).logits.log_softmax(-1)[targets >= 0]
        targets = targets[targets >= 0]
        best, guesses = log_p.max(-1)
        yield -log_p[torch.arange(len(targets)), targets], best.exp(), guesses.eq(targets)


@pytest.mark.parametrize("name", PLAIN)
def test_the_logits_of_a_large_vocabulary_are_never_whole(name, largest):
    model, ids = model_of_class(name), np.random.default_rng(0).integers(VOCAB, size=450).astype(np.uint16)
    windows = EvaluationWindows(ids, 64)
    expected = [torch.cat(values) for values in zip(*scores_of_whole_logits(model, windows, 4), strict=True)]
    largest.clear()
    loss, scores = evaluate_loss(model, windows), score_tokens(model, windows)
    assert max(largest) <= LOGITS < 449 * VOCAB
    assert loss == pytest.approx(expected[0].double().mean().item(), rel=1e-6)
    for values, whole in zip((scores.losses, scores.confidences, scores.hits), expected, strict=True):
        assert values == pytest.approx(whole.numpy(), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", ["gemma2", "cohere", "granite"])
def test_a_class_that_changes_its_logits_is_evaluated_by_its_own_forward_pass(name, monkeypatch):
    monkeypatch.setattr(metrics, "LOGITS", 500)
    monkeypatch.setitem(SIZES, "logits_scaling", 8.0)  # Granite's; the others have a scale or a cap by default
    model, windows = model_of_class(name, 65), EvaluationWindows(some_ids(100), CONTEXT)
    losses = torch.cat([losses for losses, *_ in scores_of_whole_logits(model, windows, 3)])
    assert metrics.plain_head(model) is None
    assert evaluate_loss(model, windows) == pytest.approx(losses.mean().item(), rel=1e-6)
