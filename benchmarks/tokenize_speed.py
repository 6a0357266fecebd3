"""Text to packed ids on one core: MB/s compared with calling the tokenizer; speed and memory for a large file.

    python -m benchmarks.tokenize_speed --megabytes 1000

Both methods encode tiny Shakespeare alternately (A B A B ...). The large file repeats this text; its ids are written
to the cache as in training, including the pass that computes the hash under which they are cached. The result is
written to `benchmarks/results/tokenize_speed.json`.
"""

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path

import torch

from modeling_gptlite.data.files import TextFile
from modeling_gptlite.data.sources import SourceArguments, open_source
from modeling_gptlite.runs.record import describe_environment
from tokenization import build_char_tokenizer, encode_corpus


RESULT = Path(__file__).parent / "results" / "tokenize_speed.json"


def megabytes_per_second(encode, text: str) -> float:
    began = time.perf_counter()
    encode(text)
    return len(text) / 1e6 / (time.perf_counter() - began)


def encode_file(text: str, megabytes: int, tokenizer) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.txt"
        with open(path, "w", encoding="utf-8") as file:
            for _ in range(megabytes * 1_000_000 // len(text)):
                file.write(text)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began = time.perf_counter()
        ids = encode_corpus(TextFile(path), tokenizer, folder)
        seconds = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {
            "megabytes": len(ids) / 1e6,
            "megabytes_per_second": len(ids) / 1e6 / seconds,
            "peak_resident_megabytes": peak / 1024,
            "of_which_before": before / 1024,
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1000, help="size of the large file")
    parser.add_argument("--rounds", type=int, default=7, help="rounds")
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {0})

    text = "".join(open_source(SourceArguments(dataset="tinyshakespeare")).texts())
    tokenizer = build_char_tokenizer(text)
    large = encode_file(text, options.megabytes, tokenizer)  # first: the peak is that of the process so far
    ways = {
        "encode_corpus": lambda text: encode_corpus(text, tokenizer),
        "tokenizer": lambda text: tokenizer(text, verbose=False),
    }
    speeds = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, encode in ways.items():
            speeds[name].append(megabytes_per_second(encode, text))
    for name, values in speeds.items():
        print(f"{name}: {statistics.median(values):.1f} MB/s ({min(values):.1f} to {max(values):.1f})")
    print({name: round(value, 1) for name, value in large.items()})
    record = {
        "what": "characters of tiny Shakespeare to ids on one core, MB/s; and one large file into the cache",
        "environment": describe_environment(torch.device("cpu")),
        "megabytes_per_second": speeds,
        "large_file": large,
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
