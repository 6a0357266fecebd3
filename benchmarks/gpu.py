"""Everything that needs a GPU, in one run of less than ten minutes: losses, the 124M model's speed, generation.

    python -m benchmarks.gpu --nanogpt ../nanoGPT
    python -m benchmarks.gpu --toy          # the same code at toy size, on any machine

Trains `shakespeare_char.yaml` and `shakespeare_char_classic.yaml` to their best validation loss; measures tokens per
second and model-FLOPs utilisation of 124M parameters, and generation with 10.7M, in turn with transformers' GPT-2 and
nanoGPT. FLOPs per token are 6 x parameters + 12 x layers x width x context (PaLM, appendix B).
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks import common


PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "4090": 165e12, "T4": 65e12}
TARGET_LOSS = 1.4697  # nanoGPT's best on this text, three minutes on an A100
SIZES = {
    "real": {"width": 768, "layers": 12, "heads": 12, "vocabulary": 50304, "context": 1024, "batch": 16, "steps": 20},
    "toy": {"width": 32, "layers": 2, "heads": 2, "vocabulary": 65, "context": 32, "batch": 2, "steps": 2},
}
TOY_RUN = [
    "--max_steps=4",
    "--eval_steps=2",
    "--save_steps=2",
    "--per_device_train_batch_size=2",
    "--sample_length=5",
    '--model_overrides={"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, '
    '"intermediate_size": 64, "max_position_embeddings": 32}',
]


def train_recipe(recipe: str, toy: bool) -> dict:
    """Best validation loss, seconds of training, and seconds to the target loss by its share of the steps."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "scripts.train", "--config", f"recipes/{recipe}.yaml"]
        command += [f"--output_dir={folder}/model", *(TOY_RUN if toy else [])]
        began = time.perf_counter()
        subprocess.run(command, cwd=common.ROOT, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - began
        run = json.loads(Path(folder, "model", "run.json").read_text(encoding="utf-8"))
    results = run["results"]
    reached = [row["step"] for row in run["log_history"] if row.get("eval_loss", TARGET_LOSS + 1) <= TARGET_LOSS]
    to_target = results["train_seconds"] * reached[0] / results["steps"] if reached else None
    return {
        "validation_loss": results["loss"],
        "whole_process_seconds": seconds,
        "training_seconds": results["train_seconds"],
        f"training_seconds_to_{TARGET_LOSS}": to_target,
        "parameters": run["parameters"],
    }


def build(name: str, size: dict, nanogpt: str):
    """A model of GPT-2's architecture, and a function from ids to its loss."""
    if name == "nanoGPT":
        module = common.load_nanogpt(nanogpt)
        config = module.GPTConfig(
            block_size=size["context"],
            vocab_size=size["vocabulary"],
            n_layer=size["layers"],
            n_head=size["heads"],
            n_embd=size["width"],
            bias=False,
        )
        model = module.GPT(config)
        return model, lambda ids: model(ids[:, :-1], ids[:, 1:].contiguous())[1]
    if name == "transformers GPT-2":
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
    from modeling_gptlite import GPTLiteConfig, GPTLiteForCausalLM

    preset = {"gptlite gpt2": "gpt2-124m", "gptlite modern": "modern-124m"}[name]
    expansion = 4 if name == "gptlite gpt2" else 8 / 3
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


def training_speed(name: str, size: dict, nanogpt: str, device: torch.device) -> dict:
    """Tokens per second and model-FLOPs utilisation in bf16 with `torch.compile`, AdamW fused."""
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    model, loss_of = build(name, size, nanogpt)
    model.to(device).train()
    if device.type == "cuda":
        model.forward = torch.compile(model.forward)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=device.type == "cuda")
    ids = torch.randint(size["vocabulary"], (size["batch"], size["context"] + 1), device=device)
    synchronize = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    for step in range(5 + size["steps"]):
        if step == 5:
            synchronize()
            began = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16):
            loss = loss_of(ids)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    synchronize()
    tokens = size["batch"] * size["context"] * size["steps"] / (time.perf_counter() - began)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    flops = tokens * (6 * parameters + 12 * size["layers"] * size["width"] * size["context"])
    peak = peak_flops(device)
    figures = {"tokens_per_second": tokens, "peak_megabytes": peak_memory(device)}
    return {**figures, "model_flops_utilisation": flops / peak} if peak else figures


def peak_flops(device: torch.device) -> float | None:
    """Dense bf16 FLOPs per second that the maker states."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((flops for part, flops in PEAK_FLOPS.items() if part in name), None)


def peak_memory(device: torch.device) -> float:
    return torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else common.peak_megabytes()


def generation_speed(name: str, streams: int, toy: bool, nanogpt: str, device: torch.device) -> dict:
    """Tokens per second over all streams, in bf16."""
    size = {**SIZES["toy"], "batch": streams}
    if not toy:
        size |= {"width": 384, "layers": 6, "heads": 6, "context": 256}
    tokens = size["context"] - 6
    model, _ = build(name, size, nanogpt)
    model = model.to(device, torch.bfloat16).eval()
    start = torch.zeros(streams, 1, dtype=torch.long, device=device)

    def write():
        if name == "nanoGPT":
            return model.generate(start, tokens)
        mask = torch.ones_like(start)
        return model.generate(start, attention_mask=mask, max_new_tokens=tokens, do_sample=True, pad_token_id=0)

    with torch.no_grad():
        write()
        began = time.perf_counter()
        write()[0, -1].item()  # waits for the device
    return {"tokens_per_second": streams * tokens / (time.perf_counter() - began)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toy", action="store_true", help="toy sizes, on whatever device there is; records nothing")
    parser.add_argument("--nanogpt", default="", help="folder of a checkout of nanoGPT")
    parser.add_argument("--rounds", type=int, default=2, help="how often each speed is measured")
    parser.add_argument("--part", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type != "cuda" and not options.toy:
        parser.error("there is no CUDA device; --toy runs the same code at toy size")
    size = SIZES["toy" if options.toy else "real"]
    if options.part:
        part, name, streams = options.part
        if part == "train":
            print(json.dumps(training_speed(name, size, options.nanogpt, device)))
        else:
            print(json.dumps(generation_speed(name, int(streams), options.toy, options.nanogpt, device)))
        return

    names = ["gptlite gpt2", "gptlite modern", "transformers GPT-2", *(["nanoGPT"] if options.nanogpt else [])]
    flags = [*(["--toy"] if options.toy else []), f"--nanogpt={options.nanogpt}"]

    def part(kind, name, streams):
        return lambda: common.in_a_process("benchmarks.gpu", *flags, "--part", kind, name, str(streams))

    recipes = {name: train_recipe(name, options.toy) for name in ("shakespeare_char", "shakespeare_char_classic")}
    print(json.dumps(recipes, indent=2), flush=True)
    pairs = [(ours, theirs) for ours in names[:2] for theirs in names[2:]]
    speeds = {}
    for kind, streams in (("train", 0), ("generate", 1), ("generate", 256 if not options.toy else 2)):
        results = common.measure_in_turn({name: part(kind, name, streams) for name in names}, options.rounds)
        label = "training, 124M" if kind == "train" else f"generation, {streams} streams"
        speeds[label] = {"results": results, "ratios": common.ratios(results, "tokens_per_second", pairs)}
    if not options.toy:
        common.record("gpu", "recipes to their best loss, 124M training, generation", recipes=recipes, speeds=speeds)


if __name__ == "__main__":
    main()
