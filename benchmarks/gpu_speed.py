"""One measurement of `benchmarks.gpu` in a process of its own: a model's speed, attention, or tensor parallelism.

    python -m benchmarks.gpu_speed --toy train "gptlite modern"

Prints the figures as JSON. FLOPs per token are 6 x parameters + 12 x layers x width x context (PaLM, appendix B).
"""

import argparse
import json
import os
import time
from collections.abc import Callable

import torch

from benchmarks import common


# Dense bf16 FLOPs per second that the maker states
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "4090": 165e12, "T4": 65e12}
TRAINED = {"width": 768, "layers": 12, "heads": 12, "vocabulary": 50304, "context": 1024, "batch": 16, "steps": 20}
GENERATED = {"width": 384, "layers": 6, "heads": 6, "vocabulary": 65, "context": 256}
TOY = {"width": 32, "layers": 2, "heads": 2, "vocabulary": 65, "context": 32, "batch": 2, "steps": 2}
WARM_UP = 5  # steps before the measurement
PRESETS = {"gptlite gpt2": ("gpt2-124m", 4), "gptlite modern": ("modern-124m", 8 / 3)}  # and the MLP's expansion


def models(nanogpt: str) -> list[str]:
    return [*PRESETS, "transformers GPT-2", *(["nanoGPT"] if nanogpt else [])]


def build(name: str, size: dict, nanogpt: str) -> tuple[torch.nn.Module, Callable[[torch.Tensor], torch.Tensor]]:
    """A model of this size without dropout, and a function from ids `(batch, context + 1)` to its loss."""
    if name == "nanoGPT":
        return _nanogpt(size, nanogpt)
    if name == "transformers GPT-2":
        return _gpt2(size)
    return _gptlite(name, size)


def _gptlite(name, size):
    from modeling_gptlite import GPTLiteConfig, GPTLiteForCausalLM

    preset, expansion = PRESETS[name]
    config = GPTLiteConfig.from_preset(
        preset,
        vocab_size=size["vocabulary"],
        max_position_embeddings=size["context"],
        hidden_size=size["width"],
        num_hidden_layers=size["layers"],
        num_attention_heads=size["heads"],
        attention_dropout=0.0,
        hidden_dropout=0.0,
        embedding_dropout=0.0,
        bos_token_id=None,
        eos_token_id=None,
        intermediate_size=int(expansion * size["width"]) // 8 * 8,
        head_dim=None,
        num_key_value_heads=None,
    )
    model = GPTLiteForCausalLM(config)
    return model, lambda ids: model(input_ids=ids[:, :-1], shift_labels=ids[:, 1:].contiguous(), use_cache=False).loss


def _gpt2(size):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=size["vocabulary"],
        n_positions=size["context"],
        n_embd=size["width"],
        n_layer=size["layers"],
        n_head=size["heads"],
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    config.bos_token_id = config.eos_token_id = None
    model = GPT2LMHeadModel(config)
    return model, lambda ids: model(input_ids=ids[:, :-1], labels=ids[:, :-1], use_cache=False).loss


def _nanogpt(size, nanogpt):
    module = common.load_nanogpt(nanogpt)
    config = module.GPTConfig(
        block_size=size["context"],
        vocab_size=size["vocabulary"],
        n_layer=size["layers"],
        n_head=size["heads"],
        n_embd=size["width"],
        dropout=0.0,
        bias=False,
    )
    model = module.GPT(config)
    return model, lambda ids: model(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())[1]


def train(options, device: torch.device) -> dict:
    """Tokens per second and model-FLOPs utilisation in bf16 with `torch.compile` and fused AdamW."""
    size = TOY if options.toy else TRAINED
    torch.set_float32_matmul_precision("high")
    model, loss_of = build(options.name, size, options.nanogpt)
    model.to(device).train()
    if device.type == "cuda":
        model.forward = torch.compile(model.forward)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=device.type == "cuda")
    ids = torch.randint(size["vocabulary"], (size["batch"], size["context"] + 1), device=device)
    for step in range(WARM_UP + size["steps"]):
        if step == WARM_UP:
            synchronize(device)
            began = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16):
            loss = loss_of(ids)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    synchronize(device)
    tokens = size["batch"] * size["context"] * size["steps"] / (time.perf_counter() - began)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    flops = tokens * (6 * parameters + 12 * size["layers"] * size["width"] * size["context"])
    peak = peak_flops(device)
    figures = {"tokens_per_second": tokens, "parameters": parameters, "peak_megabytes": peak_memory(device)}
    return {**figures, "model_flops_utilisation": flops / peak} if peak else figures


def generate(options, device: torch.device) -> dict:
    """Tokens per second over all texts, in bf16; the first call, which compiles if asked to, is reported separately."""
    size = TOY if options.toy else GENERATED
    tokens = size["context"] - 6
    model, _ = build(options.name, size, options.nanogpt)
    model = model.to(device, torch.bfloat16).eval()
    start = torch.zeros(options.texts, 1, dtype=torch.long, device=device)
    settings = {"cache_implementation": "static"} if options.way == "compiled" else {}

    def write():
        if options.name == "nanoGPT":
            return model.generate(start, tokens)
        return model.generate(
            start,
            attention_mask=torch.ones_like(start),
            max_new_tokens=tokens,
            do_sample=True,
            pad_token_id=0,
            **settings,
        )

    seconds = []
    with torch.no_grad():
        for _ in range(3):
            began = time.perf_counter()
            write()[0, -1].item()  # waits for the device
            seconds.append(time.perf_counter() - began)
    return {"tokens_per_second": options.texts * tokens / min(seconds[1:]), "first_text_seconds": seconds[0]}


def attention(options, device: torch.device) -> dict:
    """Loss of one training step with the attention implementation `name`, and how far it is from eager's."""
    losses, gradients = [], []
    for implementation in ("eager", options.name):
        torch.manual_seed(0)
        model, loss_of = build("gptlite modern", {**GENERATED, "batch": 4} if not options.toy else TOY, "")
        model.to(device).train()
        model.set_attn_implementation(implementation)
        ids = torch.randint(65, (4, model.config.max_position_embeddings + 1), device=device)
        # flash attention exists in half precision only
        with torch.autocast(device.type, torch.bfloat16, enabled="flash" in options.name):
            loss = loss_of(ids)
        loss.backward()
        losses.append(loss.item())
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    difference = (gradients[1] - gradients[0]).abs().max() / gradients[0].abs().max()
    return {"loss": losses[1], "loss_difference": losses[1] - losses[0], "gradient_difference": difference.item()}


def tensor_parallel(options, device: torch.device) -> dict:
    """Largest difference between the logits of a model loaded with tensor parallelism in one process, and without."""
    import tempfile

    from transformers.distributed import DistributedConfig

    from modeling_gptlite import GPTLiteForCausalLM

    os.environ |= {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29511",
    }
    model, _ = build("gptlite modern", TOY, "")
    ids = torch.arange(TOY["context"], device=device)[None] % TOY["vocabulary"]
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        model.save_pretrained(folder)
        expected = model.to(device).eval()(ids).logits
        sharded = GPTLiteForCausalLM.from_pretrained(folder, distributed_config=DistributedConfig(tp_plan="auto"))
        difference = (sharded(ids).logits - expected).abs().max().item()
    return {"largest_logit_difference": difference}


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def peak_flops(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((flops for part, flops in PEAK_FLOPS.items() if part in name), None)


def peak_memory(device: torch.device) -> float:
    return torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else common.peak_megabytes()


KINDS = {"train": train, "generate": generate, "attention": attention, "tensor_parallel": tensor_parallel}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toy", action=argparse.BooleanOptionalAction, default=False, help="toy sizes")
    parser.add_argument("--nanogpt", default="", help="folder of a checkout of nanoGPT")
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("name", help="model, or attention implementation")
    parser.add_argument("way", nargs="?", default="plain", choices=["plain", "compiled"], help="how to generate")
    parser.add_argument("texts", nargs="?", type=int, default=1, help="texts generated at once")
    options = parser.parse_args(argv)
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(json.dumps(KINDS[options.kind](options, device)))


if __name__ == "__main__":
    main()
