"""How text is generated: the default sampling, and int8 weights on a CPU in PyTorch, for any causal language model.

    quantize_int8(model)
    model.generate(**inputs, max_new_tokens=500, **SAMPLING)

Generating one token at a time is limited by reading the weights, and int8 is a quarter of fp32. For a GPTLite,
`modeling_gptlite.engine` is faster; `benchmarks/generate_speed.py` compares them.
"""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel


SAMPLING: dict[str, Any] = {"do_sample": True, "temperature": 0.8, "top_k": 0}  # suits a small model
_FEW_ROWS = 16  # up to here the int8 product is the fastest on two cores; beyond, PyTorch multiplies faster in bf16
_LANES = 16  # the int8 product reads so many inputs at a time, also past the end


class Int8Linear(nn.Module):
    """A linear layer whose weights are int8 times one bf16 scale per output; products in bf16, the rest as given."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        weight = linear.weight.detach().float()
        scale = (weight.abs().amax(dim=1) / 127).clamp(min=torch.finfo(torch.float32).tiny).bfloat16()
        self.register_buffer("weight", (weight / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8))
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1]).bfloat16()
        if rows.shape[0] <= _FEW_ROWS and rows.shape[1] % _LANES == 0:
            product = torch._weight_int8pack_mm(rows, self.weight, self.scale)
        else:
            product = nn.functional.linear(rows, self.weight.bfloat16()) * self.scale
        product = product.to(x.dtype).view(*x.shape[:-1], -1)
        return product if self.bias is None else product + self.bias

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}, bias={self.bias is not None}"


@torch.no_grad()
def quantize_int8(model: PreTrainedModel) -> PreTrainedModel:
    """Replace every linear layer of a causal language model by its int8 form, in place; for inference on a CPU only.

    Raises:
        ValueError: the model is not on the CPU.
    """
    if model.device.type != "cpu":
        raise ValueError(f"int8 decoding runs on a CPU, and the model is on {model.device}")
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, Int8Linear(child))
    return model.eval()
