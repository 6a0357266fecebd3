"""What depends on the hardware is chosen here: precision, attention, the arithmetic of the optimizer.

facts = hardware_facts(args, 256, model.config)
print(describe(facts))  # bf16, not compiled, 1 x cpu
"""

import contextlib
import ctypes
import os
import shutil
import sys
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, TrainingArguments
from transformers.masking_utils import sdpa_mask
from transformers.utils import is_torch_bf16_gpu_available


# With torch.compile, a run starts this many seconds later and saves this fraction of its time. Measured with modern-1m
# on a CPU, where larger models gain less.
_COMPILING_SECONDS, _COMPILED_SAVES = 75.0, 0.2
SHORT_WINDOWS = "short_windows"  # the name of `short_window_attention` for `set_attn_implementation`
_SHORT = 1024  # tokens of a window up to which eager attention trains faster than the fused kernel, on a CPU in bf16
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
LARGE = 20_000_000  # parameters
_BLOCK = 256  # queries whose weights are computed at once


def multiplies_bf16(device_type: str) -> bool:
    """Whether the hardware itself multiplies bf16, instead of converting it to fp32 and back."""
    if device_type == "cpu":
        # The flags are those of the processor; ATEN_CPU_CAPABILITY=avx2 makes PyTorch use less than it has.
        in_use = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
        return in_use and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)  # a T4 emulates it, slower than fp32
    return is_torch_bf16_gpu_available()


def newton_schulz_dtype(device: torch.device) -> torch.dtype:
    """The dtype of Muon's matrix products. Where bf16 is not in hardware, fp32 is 2 to 4 times faster."""
    return torch.bfloat16 if multiplies_bf16(device.type) else torch.float32


def precision(args: TrainingArguments) -> str:
    """Of the forward and backward pass: bf16, fp16 or fp32."""
    return "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32"


def autocast(args: TrainingArguments) -> contextlib.AbstractContextManager:
    """The precision of training."""
    if not (args.bf16 or args.fp16):
        return contextlib.nullcontext()
    return torch.autocast(args.device.type, dtype=torch.bfloat16 if args.bf16 else torch.float16)


def inference_precision(model) -> str:
    """The fastest precision of the hardware for a large model, bf16 or fp32; fp32 for a small one.

    Below 20 million parameters evaluation takes seconds, and its numbers are those of every earlier release.
    """
    return "bf16" if model.num_parameters() >= LARGE and multiplies_bf16(model.device.type) else "fp32"


def training_attention(args: TrainingArguments, context: float, config: PreTrainedConfig) -> str | None:
    """The attention to train windows of `context` tokens with; None for the model's own.

    On a CPU in bf16, the backward pass of the fused kernel takes twice as long as eager attention on short windows. A
    model with eager attention of its own keeps it: it may limit the scores, or attend to a sink.
    """
    is_fused = config._attn_implementation != "eager"
    is_slow = args.device.type == "cpu" and args.bf16 and context <= _SHORT and is_fused
    return SHORT_WINDOWS if is_slow else None


def short_window_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """Eager attention in blocks of queries that keeps the weights in the dtype of the inputs.

    Args:
        query: `(batch, heads, tokens, head_dim)`; `key` and `value` may have fewer heads.
        attention_mask: `(batch, 1, tokens, tokens)`, True where a token is attended to; None for a causal mask.

    Returns:
        `(batch, tokens, heads, head_dim)`, and None instead of the weights.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    query = query * scaling
    cached = key.shape[2] - query.shape[2]  # tokens before the first query
    outputs = []
    for start in range(0, query.shape[2], _BLOCK):
        block = query[:, :, start : start + _BLOCK]
        end = cached + start + block.shape[2]  # later keys are in the future of the block
        if attention_mask is None:
            mask = torch.ones((block.shape[2], end), dtype=torch.bool, device=block.device).tril(cached + start)
        else:
            mask, end = attention_mask[:, :, start : start + _BLOCK], key.shape[2]
        weights = block @ key[:, :, :end].transpose(2, 3)
        nothing = torch.zeros((), dtype=weights.dtype, device=weights.device)
        hidden = nothing.masked_fill(~mask, torch.finfo(weights.dtype).min)
        with torch.autocast(weights.device.type, enabled=False):  # the kernel accumulates in fp32 without it
            weights = torch.softmax(weights + hidden, dim=-1)
        weights = torch.nn.functional.dropout(weights, p=dropout, training=module.training)
        outputs.append(weights @ value[:, :, :end])
    output = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register(SHORT_WINDOWS, short_window_attention)
AttentionMaskInterface.register(SHORT_WINDOWS, sdpa_mask)  # None for a causal mask


def keep_freed_memory() -> None:
    """Let glibc keep the memory that a step frees for the next one, on a CPU.

    Otherwise it returns large blocks to the system, and the page faults of getting them again take 18 % of a step with
    135 million parameters.
    """
    if mallopt := _from_glibc("mallopt"):
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def give_back_memory() -> None:
    """Return to the system what `keep_freed_memory` kept."""
    if malloc_trim := _from_glibc("malloc_trim"):
        malloc_trim(0)


def _from_glibc(name: str) -> Any:
    """A function of glibc; None with another library, or where an accelerator computes."""
    if sys.platform != "linux" or torch.accelerator.is_available():
        return None
    return getattr(ctypes.CDLL(None), name, None)


def compiling_pays(seconds: float) -> bool:
    """Whether a run that takes `seconds` ends earlier with `torch.compile`, which needs a C++ compiler."""
    has_compiler = any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++", "cl")))
    return has_compiler and _COMPILED_SAVES * seconds > _COMPILING_SECONDS


def hardware_facts(args: TrainingArguments, context: float, config: PreTrainedConfig) -> dict[str, Any]:
    """All choices, in plain values for `run.json`."""
    return {
        "precision": precision(args),
        "attention": training_attention(args, context, config) or "the model's",
        "compiled": args.torch_compile,
        "muon_dtype": str(newton_schulz_dtype(args.device)).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "processes": args.world_size,
        "device": args.device.type,
    }


def describe(facts: dict[str, Any]) -> str:
    """The choices that a user may want to change, in one line."""
    compiled = "compiled" if facts["compiled"] else "not compiled"
    return f"{facts['precision']}, {compiled}, {facts['processes']} x {facts['device']}"
