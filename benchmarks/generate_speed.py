"""Tokens per second of `generate()` with 10.7M parameters: this package plain, in int8 and compiled, and its peers.

    python -m benchmarks.generate_speed --nanogpt ../nanoGPT --model out/quickstart

Peers are transformers' GPT-2 and Qwen3 with their defaults, and nanoGPT where a checkout is given. `--model` is a
trained model, of which the record tells how far bf16 and int8 move the validation loss. The compiled step has been
compiled before the clock starts; how long that took is in the record, too.
"""

import argparse
import json
import statistics
import time

import torch

from benchmarks import common


CONTEXT = 256
PRESETS = ("modern-10m", "classic-10m")


def build_gptlite(preset: str, way: str, streams: int):
    from modeling_gptlite import GPTLiteConfig, GPTLiteForCausalLM
    from modeling_gptlite.decoding import compile_decoding, quantize_int8

    model = GPTLiteForCausalLM(GPTLiteConfig.from_preset(preset, vocab_size=65)).eval()
    if "bf16" in way:
        model = model.bfloat16()
    if "int8" in way:
        model = quantize_int8(model)
    return compile_decoding(model, streams) if "compiled" in way else model


def build_gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=65, n_embd=384, n_layer=6, n_head=6, n_positions=CONTEXT)
    return GPT2LMHeadModel(config).eval()


def build_qwen3():
    from modeling_gptlite import GPTLiteConfig, GPTLiteForCausalLM
    from modeling_gptlite.conversion import to_native

    return to_native(GPTLiteForCausalLM(GPTLiteConfig.from_preset("modern-10m", vocab_size=65))).eval()


def writer(name: str, streams: int, tokens: int, nanogpt: str):
    """A function that writes `tokens` tokens in each of `streams` texts."""
    start = torch.zeros(streams, 1, dtype=torch.long)
    if name == "nanoGPT":
        module = common.load_nanogpt(nanogpt)
        config = module.GPTConfig(
            block_size=CONTEXT, vocab_size=65, n_layer=6, n_head=6, n_embd=384, dropout=0.0, bias=False
        )
        model = module.GPT(config).eval()
        return lambda: model.generate(start, tokens)
    if name == "transformers GPT-2":
        model = build_gpt2()
    elif name == "transformers Qwen3":
        model = build_qwen3()
    else:
        model = build_gptlite(*name.split(maxsplit=1), streams)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    mask = torch.ones_like(start)
    return lambda: model.generate(start, attention_mask=mask, max_new_tokens=tokens, do_sample=True)


def measure(name: str, streams: int, tokens: int, nanogpt: str) -> dict:
    """Tokens per second over all streams: the median of three texts after one; slow ones are asked for fewer."""
    torch.manual_seed(0)
    write = writer(name, streams, tokens, nanogpt)
    seconds = []
    while len(seconds) < 4 and sum(seconds) < 60:
        began = time.perf_counter()
        with torch.no_grad():
            write()
        seconds.append(time.perf_counter() - began)
    return {
        "tokens_per_second": streams * tokens / statistics.median(seconds[1:] or seconds),
        "first_text_seconds": seconds[0],
        "peak_megabytes": common.peak_megabytes(),
    }


def memory_bandwidth() -> float:
    """Bytes per second at which a large tensor is read and summed: the most of ten readings."""
    tensor = torch.ones(64 << 20)
    seconds = []
    for _ in range(10):
        began = time.perf_counter()
        tensor.sum()
        seconds.append(time.perf_counter() - began)
    return tensor.numel() * tensor.element_size() / min(seconds)


def losses_by_precision(folder: str) -> dict[str, float]:
    """Validation loss of a trained model over tiny Shakespeare's whole validation split, in fp32, bf16 and int8."""
    from modeling_gptlite import GPTLiteForCausalLM
    from modeling_gptlite.decoding import quantize_int8
    from modeling_gptlite.training.data import EvaluationWindows
    from modeling_gptlite.training.metrics import evaluate_loss

    _, validation_ids = common.corpus_ids()
    losses = {}
    for precision in ("fp32", "bf16", "int8"):
        model = GPTLiteForCausalLM.from_pretrained(folder).eval()
        if precision == "bf16":
            model = model.bfloat16()
        elif precision == "int8":
            model = quantize_int8(model)
        windows = EvaluationWindows(validation_ids, model.config.max_position_embeddings)
        losses[precision] = evaluate_loss(model, windows)
    return losses


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rounds", type=int, nargs="+", default=[3, 2], help="how often each is measured, by --streams"
    )
    parser.add_argument("--tokens", type=int, default=250, help="new tokens of each text")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16], help="texts written at once")
    parser.add_argument("--nanogpt", default="", help="folder of a checkout of nanoGPT")
    parser.add_argument("--model", help="a trained model's folder, for the loss in lower precision")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.streams[0], options.tokens, options.nanogpt)))
        return

    ours = [f"{preset} {way}" for preset in PRESETS for way in ("plain", "int8", "int8 compiled")]
    theirs = ["transformers GPT-2", "transformers Qwen3", *(["nanoGPT"] if options.nanogpt else [])]
    fields = {"parameters": 10_700_000, "tokens": options.tokens, "bytes_per_second": memory_bandwidth()}
    for streams, rounds in zip(options.streams, options.rounds, strict=True):
        print(f"--- {streams} streams")

        def measured(name, streams=streams):
            arguments = ["--one", name, f"--streams={streams}", f"--tokens={options.tokens}"]
            arguments.append(f"--nanogpt={options.nanogpt}")
            return lambda: common.in_a_process("benchmarks.generate_speed", *arguments)

        results = common.measure_in_turn({name: measured(name) for name in ours + theirs}, rounds)
        pairs = [(our, their) for our in ours for their in theirs]
        table = common.ratios(results, "tokens_per_second", pairs)
        fields[f"streams_{streams}"] = {"results": results, "ratios": table}
    if options.model:
        fields["validation_loss"] = losses_by_precision(options.model)
        print(fields["validation_loss"])
    common.record("generate_speed", "tokens per second of generate(), 10.7M parameters", **fields)


if __name__ == "__main__":
    main()
