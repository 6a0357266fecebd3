"""The logits of a large vocabulary in chunks: the same numbers as from all logits at once, in less memory."""

import copy

import numpy as np
import pytest
import torch
from helpers import tiny_model
from transformers import AutoConfig, AutoModelForCausalLM

from modeling_gptlite.data.windows import IGNORED, EvaluationWindows, RandomWindows
from modeling_gptlite.evaluation.statistics import score_tokens
from modeling_gptlite.training import head
from modeling_gptlite.training.head import LOGITS, TrainingLoss, plain_head, training_loss
from modeling_gptlite.training.metrics import evaluate_loss
from modeling_gptlite.training.trainer import CausalLMTrainer, CausalLMTrainingArguments


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
PLAIN = ["gptlite", "llama", "gpt2", "qwen3", "gpt_neox", "lora", "lora_head"]


def model_of_class(name, vocab_size=VOCAB):
    torch.manual_seed(0)
    if name == "gptlite":
        return tiny_model(
            "modern-1m", vocab_size=vocab_size, hidden_size=32, max_position_embeddings=64, initializer_range=0.5
        )
    kind = {"lora": "llama", "lora_head": "llama"}.get(name, name)
    config = AutoConfig.for_model(kind, vocab_size=vocab_size, bos_token_id=0, eos_token_id=0, pad_token_id=0, **SIZES)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    if kind == name:
        return model
    peft = pytest.importorskip("peft")
    layers = ["q_proj", "lm_head"] if name == "lora_head" else ["q_proj"]
    lora = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=layers, init_lora_weights=False)
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
    monkeypatch.setattr(head, "LOGITS", 500)
    monkeypatch.setitem(SIZES, "logits_scaling", 8.0)  # Granite's; the others have a scale or a cap by default
    model, windows = model_of_class(name, 65), EvaluationWindows(np.random.default_rng(0).integers(65, size=100), 16)
    losses = torch.cat([losses for losses, *_ in scores_of_whole_logits(model, windows, 3)])
    assert plain_head(model) is None
    assert evaluate_loss(model, windows) == pytest.approx(losses.mean().item(), rel=1e-6)


# ---- Training ------------------------------------------------------------------------------------------------------


def arguments(folder, **settings):
    given = {"max_steps": 3, "per_device_train_batch_size": 2, "precision": "fp32", "eval_strategy": "no", **settings}
    return CausalLMTrainingArguments(output_dir=str(folder), save_strategy="no", report_to="none", **given)


def some_windows(count=12, context=32):
    ids = np.random.default_rng(0).integers(VOCAB, size=2000).astype(np.uint16)
    return RandomWindows(ids, context, count, seed=0)


def gradients(model, batch, loss=None, count=None, is_masked=False):
    """The loss of a batch, and the gradient of every parameter."""
    model.zero_grad()
    labels = batch["labels"].clone()
    if is_masked:
        labels[0, ::3] = IGNORED
    if loss is None:
        value = model(input_ids=batch["input_ids"], labels=labels, shift_labels=labels, num_items_in_batch=count).loss
    else:
        with loss.headless():
            value = loss(model(input_ids=batch["input_ids"]), labels, count)
    value.backward()
    return value.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("count", [None, torch.tensor(100)], ids=["mean", "num_items"])
@pytest.mark.parametrize("name", ["gptlite", "llama", "gpt2", "qwen3", "gpt_neox"])
def test_the_loss_in_chunks_has_the_same_value_and_gradients(name, count):
    model, batch = model_of_class(name), some_windows().__getitems__(range(20))
    expected, whole = gradients(model.eval(), batch, count=count, is_masked=True)  # without dropout
    loss = training_loss(model, arguments("unused"))
    value, found = gradients(model, batch, loss, count, is_masked=True)
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)
    assert found.keys() == whole.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, whole[name], rtol=1e-4, atol=1e-6 * whole[name].abs().max().item())


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_head_of_the_loss_is_differentiated_exactly(smoothing, bias):
    torch.manual_seed(0)
    layer = torch.nn.Linear(8, 30, bias=bias, dtype=torch.float64)
    states, targets = torch.randn(1, 11, 8, dtype=torch.float64, requires_grad=True), torch.randint(0, 30, (1, 11))
    targets[0, 4] = IGNORED
    in_chunks = TrainingLoss(head.Head(layer, 30), None, smoothing)
    whole = TrainingLoss(None, None, smoothing)
    results = []
    for loss, outputs in ((in_chunks, states), (whole, layer(states))):
        layer.zero_grad()
        states.grad = None
        value = 3 * loss(type("Outputs", (), {"logits": outputs}), targets)
        value.backward()
        results.append([value.double(), states.grad, *(p.grad.clone() for p in layer.parameters())])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_float16_keeps_small_gradients_that_its_loss_scale_lifts():
    """Of a step with a million tokens; the Trainer's scaler multiplies the loss by 65,536."""
    torch.manual_seed(0)
    layer, targets = torch.nn.Linear(8, 30, bias=False), torch.randint(0, 30, (1, 11))
    found = []
    for dtype in (torch.float16, torch.float32):
        states = torch.randn(1, 11, 8, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
        loss = TrainingLoss(head.Head(layer, 30), dtype)
        value = 65_536 * loss(type("Outputs", (), {"logits": states}), targets, torch.tensor(1_000_000))
        value.backward()
        found.append(states.grad.float())
    torch.testing.assert_close(*found, rtol=0.01, atol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {"gradient_accumulation_steps": 2},
        {"label_smoothing_factor": 0.1},
        {"precision": "bf16"},
    ],
    ids=["accumulated", "smoothed", "bf16"],
)
@pytest.mark.parametrize("name", ["llama", "lora"])
def test_a_trainer_takes_the_same_steps_with_the_loss_in_chunks(name, settings, tmp_path, monkeypatch):
    compare_training(model_of_class(name), settings, tmp_path, monkeypatch)


def test_a_compiled_model_takes_the_same_steps_with_the_loss_in_chunks(tmp_path, monkeypatch):
    compare_training(model_of_class("llama"), {"torch_compile": True}, tmp_path, monkeypatch)


def compare_training(model, settings, tmp_path, monkeypatch):
    weights = []
    for least in (1 << 14, 1 << 20):  # tokens of a vocabulary from which the loss is computed in chunks
        monkeypatch.setattr(head, "LARGE_VOCABULARY", least)
        trainer = CausalLMTrainer(copy.deepcopy(model), arguments(tmp_path, **settings), train_dataset=some_windows())
        trainer.train()
        is_chunked = isinstance(trainer.compute_loss_func, TrainingLoss) and trainer.compute_loss_func.head is not None
        assert is_chunked is (least == 1 << 14)
        weights.append(dict(trainer.model.named_parameters()))
    tolerance = 2e-4 if settings.get("precision") == "bf16" else 1e-5
    for name, weight in weights[0].items():
        torch.testing.assert_close(weight, weights[1][name], rtol=0, atol=tolerance, msg=name)


@pytest.mark.parametrize("name", ["gptlite", "llama"])
def test_training_never_holds_all_logits(name, tmp_path, monkeypatch):
    sizes, softmax = [], torch.log_softmax

    def watched(logits, *args, **kwargs):
        sizes.append(logits.numel())
        return softmax(logits, *args, **kwargs)

    monkeypatch.setattr(torch, "log_softmax", watched)
    windows = some_windows(64, context=64)
    args = arguments(tmp_path, max_steps=1, per_device_train_batch_size=16)
    CausalLMTrainer(model_of_class(name), args, train_dataset=windows).train()
    assert max(sizes) <= LOGITS < sum(sizes)


@pytest.mark.parametrize("name", ["gemma2", "granite", "lora_head"])
def test_a_model_with_another_head_is_trained_with_its_own_loss(name, monkeypatch):
    monkeypatch.setitem(SIZES, "logits_scaling", 8.0)
    assert training_loss(model_of_class(name), arguments("unused")) is None
