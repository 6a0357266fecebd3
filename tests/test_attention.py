"""The attention for training on a CPU equals eager attention, for every model, mask and number of heads."""

import pytest
import torch
from helpers import ARCHITECTURES, tiny_model
from transformers import Qwen3Config, Qwen3ForCausalLM

from modeling_gptlite.training.attention import SHORT_WINDOWS


def grouped():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8}
    config = Qwen3Config(vocab_size=65, num_attention_heads=4, num_key_value_heads=2, **sizes)
    return Qwen3ForCausalLM(config)


MODELS = {**{name: (lambda name=name: tiny_model(name)) for name in ARCHITECTURES}, "grouped Qwen3": grouped}
IDS = torch.randint(65, (3, 16), generator=torch.Generator().manual_seed(0))
PADDED = torch.ones(3, 16, dtype=torch.long)
PADDED[0, :5] = PADDED[1, 12:] = 0


def loss_and_gradient(model, attention, **inputs):
    model.set_attn_implementation(attention)
    model.zero_grad()
    loss = model(input_ids=IDS, labels=IDS, use_cache=False, **inputs).loss
    loss.backward()
    return loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("mask", [None, PADDED], ids=["causal", "padded"])
def test_it_computes_what_eager_attention_computes(build, mask):
    model = build().train()
    expected = loss_and_gradient(model, "eager", attention_mask=mask)
    torch.testing.assert_close(loss_and_gradient(model, SHORT_WINDOWS, attention_mask=mask), expected)


def test_packed_texts_do_not_see_each_other():
    model = tiny_model("modern-1m")
    position_ids = torch.cat([torch.arange(7), torch.arange(9)]).expand(3, -1)
    expected = loss_and_gradient(model, "eager", position_ids=position_ids)
    torch.testing.assert_close(loss_and_gradient(model, SHORT_WINDOWS, position_ids=position_ids), expected)


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_a_text_is_continued_as_with_eager_attention(build):
    model = build().eval()
    texts = []
    for attention in ("eager", SHORT_WINDOWS):
        model.set_attn_implementation(attention)
        texts.append(model.generate(IDS[:1], max_new_tokens=12, do_sample=False, pad_token_id=0))
    assert torch.equal(*texts)


def test_dropout_is_drawn_in_training_only():
    model = tiny_model("modern-1m", attention_dropout=0.5)
    model.set_attn_implementation(SHORT_WINDOWS)
    evaluated = [model.eval()(IDS).logits for _ in range(2)]
    trained = [model.train()(IDS).logits for _ in range(2)]
    assert torch.equal(*evaluated)
    assert not torch.equal(*trained)


def test_in_bf16_it_stays_close():
    model = tiny_model("modern-1m")
    with torch.autocast("cpu", torch.bfloat16):
        eager, short = (loss_and_gradient(model, name) for name in ("eager", SHORT_WINDOWS))
    torch.testing.assert_close(short, eager, atol=5e-3, rtol=5e-2)
