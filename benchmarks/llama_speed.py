"""Seconds that llama.cpp takes to generate from a GGUF file; runs in a Python that has llama-cpp-python.

PYTHON benchmarks/llama_speed.py model.gguf 250   # prints a JSON list: four texts
"""

import json
import os
import sys
import time
from itertools import islice

from llama_cpp import Llama


def main(path: str, tokens: int) -> None:
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    model = Llama(path, n_ctx=tokens + 1, n_threads=threads, n_threads_batch=threads, verbose=False)
    seconds = []
    for _ in range(4):
        began = time.perf_counter()
        # As transformers samples by default, and the end of text does not stop it
        for _ in islice(model.generate([0], top_k=50, top_p=1.0, min_p=0.0, temp=1.0), tokens):
            pass
        seconds.append(time.perf_counter() - began)
    print(json.dumps(seconds))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
