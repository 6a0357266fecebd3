"""Tokens per second of `generate()` with 10.7M parameters: plain, in the engine, and other packages.

    python -m benchmarks.generate_speed --nanogpt ../nanoGPT --llama-cpp ../llama/bin/python --model out/quickstart

Compared are transformers' GPT-2 and Qwen3 with their default settings, nanoGPT if a checkout is given, and llama.cpp,
which runs this package's GGUF export, one text at a time, if a Python with llama-cpp-python is given. With `--model`,
a trained model, the record also contains its validation loss in fp32, bf16 and the engine.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import torch

from benchmarks import common


CONTEXT = 256
WAYS = ("plain", "engine float32", "engine int8")
GGUF_DTYPES = ("f32", "f16", "q8_0")
PRESETS = ("modern-10m", "classic-10m")


def build_gptlite(preset: str, way: str):
    from modeling_gptlite import GPTLiteConfig, GPTLiteForCausalLM

    model = GPTLiteForCausalLM(GPTLiteConfig.from_preset(preset, vocab_size=65)).eval()
    if way.startswith("engine"):
        from modeling_gptlite.engine import in_engine

        return in_engine(model, int8="int8" in way)
    return model


def build_gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=65, n_embd=384, n_layer=6, n_head=6, n_positions=CONTEXT)
    return GPT2LMHeadModel(config).eval()


def build_qwen3():
    from modeling_gptlite import GPTLiteConfig, GPTLiteForCausalLM
    from modeling_gptlite.interchange import to_native

    return to_native(GPTLiteForCausalLM(GPTLiteConfig.from_preset("modern-10m", vocab_size=65))).eval()


def writer(name: str, streams: int, tokens: int, nanogpt: str):
    """A function that generates `tokens` tokens in each of `streams` sequences."""
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
        model = build_gptlite(*name.split(maxsplit=1))
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    mask = torch.ones_like(start)
    return lambda: model.generate(start, attention_mask=mask, max_new_tokens=tokens, do_sample=True)


def seconds_of_llama_cpp(dtype: str, tokens: int, python: str) -> list[float]:
    from modeling_gptlite import GPTLiteConfig, GPTLiteForCausalLM
    from modeling_gptlite.interchange import Material, write
    from tokenization import build_char_tokenizer

    model = GPTLiteForCausalLM(GPTLiteConfig.from_preset("modern-10m", vocab_size=65)).eval()
    with tempfile.TemporaryDirectory() as folder:
        write(Material(model, build_char_tokenizer("ab"), name="model"), Path(folder), "gguf", dtype)
        (path,) = Path(folder).glob("*.gguf")
        command = [python, str(Path(__file__).with_name("llama_speed.py")), str(path), str(tokens)]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure_llama_cpp(name: str, tokens: int, python: str) -> dict:
    """As `measure`, without the memory, which is that of another process."""
    seconds = seconds_of_llama_cpp(name.removeprefix("llama.cpp "), tokens, python)
    return {"tokens_per_second": tokens / statistics.median(seconds[1:]), "first_text_seconds": seconds[0]}


def measure(name: str, streams: int, tokens: int, nanogpt: str) -> dict:
    """Tokens per second over all sequences: the median of three runs after a first one, fewer if they are slow."""
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
    """Bytes per second while summing a large tensor: the maximum of ten attempts."""
    tensor = torch.ones(64 << 20)
    seconds = []
    for _ in range(10):
        began = time.perf_counter()
        tensor.sum()
        seconds.append(time.perf_counter() - began)
    return tensor.numel() * tensor.element_size() / min(seconds)


def losses_by_precision(folder: str) -> dict[str, float]:
    """Validation loss of a trained model on tiny Shakespeare, in fp32, bf16 and the engine."""
    from modeling_gptlite import GPTLiteForCausalLM
    from modeling_gptlite.data.windows import EvaluationWindows
    from modeling_gptlite.engine import load_fast
    from modeling_gptlite.training.metrics import evaluate_loss

    _, validation_ids = common.corpus_ids()
    losses = {}
    for precision in ("fp32", "bf16", "engine"):
        model = load_fast(folder) if precision == "engine" else GPTLiteForCausalLM.from_pretrained(folder).eval()
        if precision == "bf16":
            model = model.bfloat16()
        windows = EvaluationWindows(validation_ids, model.config.max_position_embeddings)
        losses[precision] = evaluate_loss(model, windows)
    return losses


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, nargs="+", default=[3, 2], help="rounds for each value of --streams")
    parser.add_argument("--tokens", type=int, default=250, help="new tokens per sequence")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16], help="sequences generated at once")
    parser.add_argument("--nanogpt", default="", help="folder of a checkout of nanoGPT")
    parser.add_argument("--llama-cpp", default="", help="a Python in which llama-cpp-python is installed")
    parser.add_argument("--model", help="folder of a trained model, to record its loss in lower precision")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        is_llama = options.one.startswith("llama.cpp")
        figures = (
            measure_llama_cpp(options.one, options.tokens, options.llama_cpp)
            if is_llama
            else measure(options.one, options.streams[0], options.tokens, options.nanogpt)
        )
        print(json.dumps(figures))
        return

    ours = [f"{preset} {way}" for preset in PRESETS for way in WAYS]
    theirs = ["transformers GPT-2", "transformers Qwen3", *(["nanoGPT"] if options.nanogpt else [])]
    fields = {"parameters": 10_700_000, "tokens": options.tokens, "bytes_per_second": memory_bandwidth()}
    for streams, rounds in zip(options.streams, options.rounds, strict=True):
        print(f"--- {streams} streams")

        def measured(name, streams=streams):
            arguments = ["--one", name, f"--streams={streams}", f"--tokens={options.tokens}"]
            arguments += [f"--nanogpt={options.nanogpt}", f"--llama-cpp={options.llama_cpp}"]
            return lambda: common.in_a_process("benchmarks.generate_speed", *arguments)

        llama = [f"llama.cpp {dtype}" for dtype in GGUF_DTYPES] if options.llama_cpp and streams == 1 else []
        results = common.measure_in_turn({name: measured(name) for name in [*ours, *theirs, *llama]}, rounds)
        pairs = [(our, their) for our in ours for their in [*theirs, *llama]]
        table = common.ratios(results, "tokens_per_second", pairs)
        fields[f"streams_{streams}"] = {"results": results, "ratios": table}
    if options.model:
        fields["validation_loss"] = losses_by_precision(options.model)
        print(fields["validation_loss"])
    common.record(f"generate_speed-{common.cpu_kind()}", "tokens per second of generate(), 10.7M parameters", **fields)


if __name__ == "__main__":
    main()
