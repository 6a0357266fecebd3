"""The memory that training a model takes, predicted before anything is allocated, and the memory that is free.

needed = training_memory(config, args, context=1024)
assert needed < free_memory(args.device)
"""

import contextlib
import copy
import math
from pathlib import Path
from typing import Any

import psutil
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, PreTrainedConfig

from ..loading import quiet
from .arguments import CausalLMTrainingArguments
from .hardware import autocast, training_attention
from .head import LARGE_VOCABULARY, LOGITS


STATE_BYTES = 8  # of AdamW, for each parameter that is trained
SLACK = 0.1  # of everything: memory that is freed and not reused at once
PEFT_BYTES = 150_000_000  # of the modules that LoRA imports


# ---- What is needed ------------------------------------------------------------------------------------------------


def training_memory(
    config: PreTrainedConfig,
    args: CausalLMTrainingArguments,
    context: int,
    lora: int | None = None,
    freezes_embeddings: bool = False,
) -> int:
    """Bytes that the weights, gradients, optimizer and activations of a run take on one device, with the loss.

    The activations are those that a forward pass saves for the backward pass, counted with tensors that have a shape
    and no memory. Measured against real runs in `benchmarks/pretrained.py`.

    Args:
        config: Of a causal language model.
        context: Tokens of a window.
        lora: Rank of the LoRA matrices that are trained beside frozen weights; None to train all.
        freezes_embeddings: The embeddings, and a head that is tied to them, are not trained.
    """
    config = copy.deepcopy(config)
    tokens, text = args.per_device_train_batch_size * context, config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    if rope.get("rope_type") == "dynamic":  # it looks at positions, and these tensors have no values
        rope["rope_type"] = "default"
    with FakeTensorMode(), quiet():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        if attention := training_attention(args, context, model.config):
            model.set_attn_implementation(attention)
        parameters = sum(p.numel() for p in model.parameters())
        linear = [
            m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not model.get_output_embeddings()
        ]
        trained = parameters if lora is None else sum(lora * sum(m.weight.shape) for m in linear)
        if freezes_embeddings and lora is None:
            trained -= model.get_input_embeddings().weight.numel()
        is_plain = _is_plain(model.eval())
        once, per_window = _activations(model.train(), args, context)
    activations = args.per_device_train_batch_size * per_window
    if getattr(args, "activation_checkpointing", args.gradient_checkpointing):  # renamed in transformers 5.23
        layers = text.num_hidden_layers
        activations = activations / layers + layers * tokens * text.hidden_size * 4
    held = 4 * parameters + STATE_BYTES * trained
    trains_head = lora is None and not (freezes_embeddings and config.tie_word_embeddings)
    training = 4 * trained + once + activations + _loss(text, tokens, trains_head, is_plain)
    evaluation = 0 if is_plain else 10 * args.per_device_eval_batch_size * context * text.vocab_size
    modules = 0 if lora is None else PEFT_BYTES
    return modules + math.ceil((1 + SLACK) * (held + max(training, evaluation)))


def _is_plain(model) -> bool:
    """Whether the logits are what the head returns, as `head.plain_head` finds with real weights."""
    head, returned = model.get_output_embeddings(), []
    if head is None:
        return False
    with head.register_forward_hook(lambda layer, args, output: returned.append(output)):
        logits = model(input_ids=torch.zeros((1, 1), dtype=torch.long), use_cache=False).logits
    return len(returned) == 1 and logits is returned[0]


def _activations(model, args: CausalLMTrainingArguments, context: int) -> tuple[int, int]:
    """Bytes that the forward pass saves whatever the batch is, such as weights in bf16, and for each window."""
    kept = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    sizes = []
    for windows in (1, 2):
        saved: dict[int, int] = {}

        def save(tensor: torch.Tensor, saved=saved) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in kept:
                saved[storage._cdata] = storage.nbytes()
            return tensor

        with autocast(args), torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
            output = model.base_model(input_ids=torch.zeros((windows, context), dtype=torch.long), use_cache=False)
            sizes.append(sum(saved.values()))
            del output
    return max(0, 2 * sizes[0] - sizes[1]), sizes[1] - sizes[0]


def _loss(text: Any, tokens: int, trains_head: bool, is_plain: bool) -> int:
    """Bytes of the logits and of what is computed from them."""
    if not is_plain:
        return 16 * tokens * text.vocab_size  # with the scaled or capped ones
    if text.vocab_size < LARGE_VOCABULARY:
        return 12 * tokens * text.vocab_size
    logits = 10 * min(LOGITS, tokens * text.vocab_size)
    return logits + text.vocab_size * text.hidden_size * (6 if trains_head else 2)


# ---- What is free --------------------------------------------------------------------------------------------------


def free_memory(device: torch.device) -> int:
    """Bytes that this process may still allocate on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = [psutil.virtual_memory().available, *_limits()]
    return max(0, min(free))


def _limits() -> list[int]:
    """What is left of the limits of this process and of its group (a container, a job of a scheduler)."""
    left = []
    with contextlib.suppress(ImportError):
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            left.append(limit - psutil.Process().memory_info().vms)
    for limit_name, used_name in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
        for folder in _control_groups():
            with contextlib.suppress(OSError, ValueError):  # no such group, or "max": no limit
                used = int((folder / used_name).read_text()) - _reclaimable(folder)
                left.append(int((folder / limit_name).read_text()) - used)
    return left


def _control_groups() -> list[Path]:
    """Folders of the control groups (Linux, version 1 and 2) that this process belongs to, and of those around them."""
    root = Path("/sys/fs/cgroup")
    folders = [root, root / "memory"]
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers in ("", "memory"):
                group = (root / controllers / path.lstrip("/")).resolve()
                folders += [group, *(parent for parent in group.parents if parent.is_relative_to(root))]
    return list(dict.fromkeys(folders))


def _reclaimable(folder: Path) -> int:
    """Bytes of files in the page cache that count as used, and that the kernel drops when memory is needed."""
    for line in (folder / "memory.stat").read_text().splitlines():
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file"):
            return int(value)
    return 0
