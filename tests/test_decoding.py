"""One default of sampling for all that generates; int8 weights stay close to the model's."""

import pytest
import torch
from helpers import ARCHITECTURES, tiny_model, tokenizer_of_kind
from torch import nn

from modeling_gptlite.decoding import SAMPLING, Int8Linear, quantize_int8
from modeling_gptlite.page.settings import SETTINGS
from modeling_gptlite.runs.evaluate import EvaluationSettings
from modeling_gptlite.runs.start import sampling_defaults


IDS = torch.randint(0, 64, (2, 12), generator=torch.Generator().manual_seed(1))


def test_samples_evaluation_the_page_and_a_saved_model_sample_alike():
    saved = sampling_defaults(tokenizer_of_kind("char"))
    assert {name: getattr(saved, name) for name in SAMPLING} == SAMPLING
    page = {name: SETTINGS[name].value for name in ("temperature", "top_k")}
    assert page | {"do_sample": True} == SAMPLING
    assert EvaluationSettings().temperature == SAMPLING["temperature"]


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
    assert not any(isinstance(module, nn.Linear) for module in model.modules())
    difference = (model(IDS).logits - expected).abs().max() / expected.abs().max()
    assert 0 < difference < 0.05
    assert model.generate(IDS, max_new_tokens=40, do_sample=False).shape == (2, 52)


def test_int8_is_for_a_cpu():
    with torch.device("meta"):
        model = tiny_model("modern-1m")
    with pytest.raises(ValueError, match="the model is on meta"):
        quantize_int8(model)
