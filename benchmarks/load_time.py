"""Seconds to import, and from loading a model to its first token, compared with transformers' own models.

python -m benchmarks.load_time
"""

import argparse
import importlib
import json
import tempfile
import time

from benchmarks import common


IMPORTS = {
    "import transformers' Qwen3": ["torch", "transformers.models.qwen3.modeling_qwen3"],
    "import modeling_gptlite": ["modeling_gptlite"],
}


def measure(name: str, folder: str) -> dict:
    began = time.perf_counter()
    for module in IMPORTS.get(name, ["modeling_gptlite"]):
        importlib.import_module(module)
    if name in IMPORTS:
        return {"seconds": time.perf_counter() - began}
    import torch
    from transformers import AutoModelForCausalLM

    from modeling_gptlite.engine import load_fast

    load = load_fast if "engine" in name else AutoModelForCausalLM.from_pretrained
    began = time.perf_counter()
    model = load(folder)
    model.generate(torch.zeros(1, 1, dtype=torch.long), max_new_tokens=1, pad_token_id=0)
    return {"seconds": time.perf_counter() - began}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="rounds")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(*options.one)))
        return

    from benchmarks.generate_speed import build_gpt2, build_gptlite

    with tempfile.TemporaryDirectory() as place:
        first_tokens = {
            "first token, modern-10m": build_gptlite("modern-10m", "plain"),
            "first token, classic-10m": build_gptlite("classic-10m", "plain"),
            "first token, modern-10m in the engine": build_gptlite("modern-10m", "plain"),
            "first token, transformers GPT-2": build_gpt2(),
        }
        folders = dict.fromkeys(IMPORTS, "")
        for number, (name, model) in enumerate(first_tokens.items()):
            folders[name] = f"{place}/{number}"
            model.save_pretrained(folders[name])

        def measured(name):
            return lambda: common.in_a_process("benchmarks.load_time", "--one", name, folders[name])

        results = common.measure_in_turn({name: measured(name) for name in folders}, options.rounds)
    pairs = [("import modeling_gptlite", "import transformers' Qwen3")]
    pairs += [(name, "first token, transformers GPT-2") for name in list(first_tokens)[:-1]]
    table = common.ratios(results, "seconds", pairs)
    common.record("load_time", "seconds to import, and from loading to the first token", results=results, ratios=table)


if __name__ == "__main__":
    main()
