"""Faster decoding on a CPU: weights in int8, and a compiled step; `generate()` and `pipeline` are called as ever.

    compile_decoding(quantize_int8(model))
    model.generate(**inputs, max_new_tokens=500)

One token at a time, a model is as fast as its weights are read, and int8 is a quarter of fp32.
`benchmarks/generate_speed.py` measures what each step brings.
"""

import functools

import torch
from torch import nn
from transformers import CompileConfig, PreTrainedModel


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
            if type(child) is nn.Linear:
                setattr(module, name, Int8Linear(child))
    return model.eval()


def compile_decoding(model: PreTrainedModel, batch_size: int = 1) -> PreTrainedModel:
    """Let `generate()` compile the step of one token, with the weights laid out for it. Needs a C++ compiler.

    The first tokens wait for the compiler, 10 to 30 seconds on two cores; so it is for long or many texts. The cache is
    as long as the context, so a step compiles once for texts of any length; where the first text leaves the context,
    the reading of the window compiles, too.

    Args:
        batch_size: How many texts will be written at once; another number works, and compiles again.
    """
    context = model.config.max_position_embeddings
    prepare_static_cache = model._prepare_static_cache

    @functools.wraps(prepare_static_cache)
    def prepare_cache_of_the_context(cache_implementation, batch_size, max_cache_len, *args, **kwargs):
        model._previous_max_cache_length = -1  # else the longest ever asked for
        return prepare_static_cache(cache_implementation, batch_size, context, *args, **kwargs)

    model._prepare_static_cache = prepare_cache_of_the_context
    if batch_size == 1:  # one query a head: PyTorch's fused kernel splits work that is not there
        model.set_attn_implementation("eager")
    config = CompileConfig(fullgraph=True, dynamic=False, mode=None, options={"freezing": True})
    config._compile_all_devices = True
    model.generation_config.cache_implementation = "static"
    model.generation_config.compile_config = config
    return model.eval()
