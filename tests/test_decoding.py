"""Faster decoding: int8 weights stay close, and a compiled step writes what the plain one writes."""

import shutil

import pytest
import torch
from conftest import ARCHITECTURES, tiny_model
from torch import nn
from transformers import pipeline

from modeling_gptlite.decoding import Int8Linear, compile_decoding, quantize_int8


IDS = torch.randint(0, 64, (2, 12), generator=torch.Generator().manual_seed(1))
needs_a_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="the compiled step needs g++")


@pytest.mark.parametrize("rows", [1, 16, 17, 100])
@pytest.mark.parametrize("bias", [False, True])
def test_an_int8_layer_is_the_product_with_its_rounded_weights(rows, bias):
    torch.manual_seed(0)
    linear = nn.Linear(48, 80, bias=bias)
    layer = Int8Linear(linear)
    rounded = layer.weight.float() * layer.scale.float()[:, None]
    step = linear.weight.abs().amax(dim=1, keepdim=True) / 127
    assert ((rounded - linear.weight).abs() <= 0.75 * step).all()
    x = torch.randn(rows, 48)
    torch.testing.assert_close(layer(x), nn.functional.linear(x, rounded, linear.bias), atol=2e-2, rtol=2e-2)
    assert layer(x[None]).shape == (1, rows, 80)
    assert layer(x).dtype == torch.float32


def test_a_row_of_zeros_stays_zero():
    linear = nn.Linear(16, 16, bias=False)
    nn.init.zeros_(linear.weight)
    assert torch.equal(Int8Linear(linear)(torch.ones(1, 16)), torch.zeros(1, 16))


@pytest.mark.parametrize("preset", ARCHITECTURES)
def test_an_int8_model_stays_close_and_generates(preset):
    model = tiny_model(preset)
    expected = model(IDS).logits
    quantized = quantize_int8(model)
    assert quantized is model
    assert not any(type(module) is nn.Linear for module in model.modules())
    difference = (model(IDS).logits - expected).abs().max() / expected.abs().max()
    assert 0 < difference < 0.05
    assert model.generate(IDS, max_new_tokens=40, do_sample=False).shape == (2, 52)


def test_int8_is_for_a_cpu():
    with torch.device("meta"):
        model = tiny_model("modern-1m")
    with pytest.raises(ValueError, match="the model is on meta"):
        quantize_int8(model)


@needs_a_compiler
def test_a_compiled_step_writes_the_plain_text_of_any_length():
    model, mask = tiny_model("modern-1m"), torch.ones(1, 12, dtype=torch.long)

    def write(length, sample):
        torch.manual_seed(3)
        return model.generate(IDS[:1], attention_mask=mask, max_new_tokens=length, do_sample=sample)

    texts = [(8, False), (60, True), (19, False), (70, False)]  # the context is 32
    plain = [write(*text) for text in texts]
    compile_decoding(model)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch._dynamo.utils.counters["stats"]
    graphs = []
    for text, expected in zip(texts, plain, strict=True):
        assert torch.equal(write(*text), expected)
        graphs.append(compiled["unique_graphs"])
    assert graphs == [1, 2, 2, 2]  # one token, and where the text leaves the context, the window that is read again


@needs_a_compiler
def test_a_pipeline_uses_the_compiled_step(trained):
    generate = pipeline("text-generation", model=str(trained), trust_remote_code=True)
    plain = generate("12", max_new_tokens=20, do_sample=False)
    compile_decoding(generate.model)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    assert generate("12", max_new_tokens=20, do_sample=False) == plain
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
