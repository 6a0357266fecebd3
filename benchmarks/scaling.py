"""How step time and memory grow with width, context, batch size, corpus size and number of processes.

    python -m benchmarks.scaling

One size at a time is varied, starting from width 128, context 128 and batch size 8 of `modern-1m` in fp32. `exponent`
is the slope between the two largest sizes on log-log axes: 1 is linear, 2 quadratic.
"""

import argparse
import json
import math
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch

from benchmarks import common


START = {"width": 128, "context": 128, "batch": 8, "processes": 1}
GROWTH = {
    "width": [128, 256, 512],
    "context": [128, 256, 512, 1024],
    "batch": [8, 16, 32],
    "processes": [1, 2],
}
CORPUS_MEGABYTES = [10, 100, 400]
WARM_UP, STEPS = 3, 8


def train_step(rank: int, size: dict, port: int, result: str) -> None:
    """Write the median milliseconds of a step and the peak memory of one process of `size["processes"]`."""
    from modeling_gptlite import GPTLiteConfig, GPTLiteForCausalLM
    from modeling_gptlite.training.optim import build_adamw

    torch.set_num_threads(max(1, (os.cpu_count() or 1) // size["processes"]))
    torch.manual_seed(0)
    heads = {"num_attention_heads": size["width"] // 32, "num_key_value_heads": None, "head_dim": None}
    shape = {"hidden_size": size["width"], "intermediate_size": size["width"] * 8 // 3 // 8 * 8, **heads}
    config = GPTLiteConfig.from_preset("modern-1m", vocab_size=65, max_position_embeddings=size["context"], **shape)
    model = GPTLiteForCausalLM(config)
    parameters = model.num_parameters()
    if size["processes"] > 1:
        torch.distributed.init_process_group(
            "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size["processes"]
        )
        model = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = build_adamw(model.module if size["processes"] > 1 else model, learning_rate=1e-3)
    ids = torch.randint(65, (size["batch"] // size["processes"], size["context"] + 1))
    seconds = []
    for _ in range(WARM_UP + STEPS):
        began = time.perf_counter()
        model(input_ids=ids[:, :-1], shift_labels=ids[:, 1:].contiguous(), use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - began)
    if size["processes"] > 1:
        torch.distributed.barrier()  # no process exits while another still communicates with it
        torch.distributed.destroy_process_group()
    if rank == 0:
        figures = {
            "milliseconds": 1000 * statistics.median(seconds[WARM_UP:]),
            "peak_megabytes": common.peak_megabytes(),
            "parameters": parameters,
        }
        Path(result).write_text(json.dumps(figures))


def measure(size: dict) -> dict:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        result = f"{folder}/figures.json"
        if size["processes"] == 1:
            train_step(0, size, port, result)
        else:
            torch.multiprocessing.spawn(train_step, args=(size, port, result), nprocs=size["processes"])
        return json.loads(Path(result).read_text())


def encode(megabytes: int) -> dict:
    from benchmarks.tokenize_speed import encode_file
    from modeling_gptlite.data.sources import SourceArguments, open_source
    from tokenization import build_char_tokenizer

    text = "".join(open_source(SourceArguments(dataset="tinyshakespeare")).texts())
    figures = encode_file(text, megabytes, build_char_tokenizer(text))
    return {
        "milliseconds": 1000 * figures["megabytes"] / figures["megabytes_per_second"],
        "peak_megabytes": figures["peak_resident_megabytes"],
    }


def exponent(sizes: list[float], values: list[float]) -> float:
    return math.log(values[-1] / values[-2]) / math.log(sizes[-1] / sizes[-2])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="rounds")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(encode(options.one["corpus"]) if "corpus" in options.one else measure(options.one)))
        return

    sizes = {f"{what} {size}": {**START, what: size} for what, values in GROWTH.items() for size in values}
    sizes |= {f"corpus {megabytes}": {"corpus": megabytes} for megabytes in CORPUS_MEGABYTES}
    measures = {
        name: (lambda size=size: common.in_a_process("benchmarks.scaling", "--one", json.dumps(size)))
        for name, size in sizes.items()
    }
    results = common.measure_in_turn(measures, options.rounds)
    exponents = {}
    for what, values in {**GROWTH, "corpus": CORPUS_MEGABYTES}.items():
        for figure in ("milliseconds", "peak_megabytes"):
            medians = [statistics.median(results[f"{what} {size}"][figure]) for size in values]
            exponents[f"{figure} by {what}"] = exponent(values, medians)
    print(json.dumps(exponents, indent=2))
    common.record(
        "scaling", "time of a training step and peak memory as one size grows", results=results, exponents=exponents
    )


if __name__ == "__main__":
    main()
