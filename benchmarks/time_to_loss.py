"""Whole runs, from process start to saved model: recipes of this package, nanoGPT's CPU example, transformers' GPT-2.

    python -m benchmarks.time_to_loss --nanogpt ../nanoGPT --gpt2

nanoGPT estimates its loss on random windows. Here its saved checkpoint is evaluated like every model in this project:
over the whole validation split, in non-overlapping windows of the context length, with every target counted. Prepare
the data in the checkout first (`python data/shakespeare_char/prepare.py`). The record keeps what is not measured again.
"""

import argparse
import json
import math
import re
import signal
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import common


NANOGPT_ON_A_CPU = """config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 --log_interval=100
    --block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --max_iters=2000 --lr_decay_iters=2000
    --dropout=0.0"""

GPT2 = "transformers' GPT-2"
# What a run would choose otherwise, because it takes the weights for those of a pretrained model
UNTRAINED = ["--freeze_embeddings=false", "--eval_on_start=false", "--per_device_eval_batch_size=64"]
UNTRAINED += ["--eval_sample_length=64", "--sample_length=500"]


def run_nanogpt(checkout: str, flags: str, limit: float = math.inf) -> dict:
    """Seconds of nanoGPT's `train.py` with these flags, the loss of the checkpoint that it saved, and its own log.

    After `limit` seconds it is ended, and the checkpoint that it has saved by then is evaluated.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-u", "train.py", *flags.split(), f"--out_dir={folder}"]
        began, lines = time.perf_counter(), []
        with subprocess.Popen(command, cwd=checkout, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout or ():
                lines.append((time.perf_counter(), line))
                if time.perf_counter() - began > limit:
                    process.terminate()
        if process.returncode not in (0, -signal.SIGTERM):
            raise SystemExit(f"{' '.join(command)} failed")
        seconds = time.perf_counter() - began
        loss = evaluate_nanogpt(checkout, f"{folder}/ckpt.pt")
    evaluated = [(when, re.search(r"step \d+: .* val loss (\S+)", line)) for when, line in lines]
    curve = [(when, float(match[1])) for when, match in evaluated if match]
    return {"seconds": seconds, **loss, "curve": [(when - curve[0][0], loss) for when, loss in curve[1:]]}


def evaluate_nanogpt(checkout: str, checkpoint: str) -> dict:
    """Loss of a nanoGPT checkpoint over the whole validation split."""
    import torch

    from modeling_gptlite.data.windows import EvaluationWindows
    from modeling_gptlite.training.metrics import mean_loss, token_losses, window_losses

    module = common.load_nanogpt(checkout)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    saved = torch.load(checkpoint, map_location=device, weights_only=True)
    model = module.GPT(module.GPTConfig(**saved["model_args"])).to(device).eval()
    model.load_state_dict({name.removeprefix("_orig_mod."): value for name, value in saved["model"].items()})
    _, ids = common.corpus_ids()
    windows = EvaluationWindows(ids, model.config.block_size)
    per_window = []
    with torch.no_grad():
        for first in range(0, len(windows), 64):
            batch = windows.__getitems__(list(range(first, min(first + 64, len(windows)))))
            inputs, targets = batch["input_ids"].to(device), batch["shift_labels"].to(device)
            logits, _ = model(inputs, inputs)  # targets, to get all logits
            per_window.append(window_losses(*token_losses(logits, targets), targets))
    return {"validation_loss": mean_loss(per_window)}


def run_recipe(recipe: str, seed: int, *more: str) -> dict:
    """Seconds, loss and curve of `gptlite train` with a recipe, which flags may follow."""
    name, *flags = recipe.split()
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["--config", f"recipes/{name}.yaml", *flags, *more, "--output_dir", f"{folder}/model"]
        command = [sys.executable, "-m", "scripts.train", *arguments, "--seed", str(seed)]
        began = time.perf_counter()
        subprocess.run(command, cwd=common.ROOT, check=True, capture_output=True)
        seconds = time.perf_counter() - began
        run = json.loads(Path(folder, "model", "run.json").read_text(encoding="utf-8"))
    results = run["results"]
    evaluated = [(row["seconds"], row["eval_loss"]) for row in run["log_history"] if "eval_loss" in row]
    return {
        "seconds": seconds,
        "training_seconds": results["train_seconds"],
        "validation_loss": results["loss"],
        "curve": evaluated or [(results["train_seconds"], results["loss"])],
    }


def run_gpt2(seed: int) -> dict:
    """transformers' GPT-2 of the same size, with nanoGPT's settings and this package's Trainer."""
    with tempfile.TemporaryDirectory() as folder:
        common.in_a_process("benchmarks.time_to_loss", "--write_gpt2", folder)
        return run_recipe("nanogpt_cpu", seed, "--model_name_or_path", folder, *UNTRAINED)


def write_gpt2(folder: str, dataset: str = "tinyshakespeare") -> dict:
    """Save an untrained GPT-2 for the characters of a built-in text."""
    from benchmarks.train_speed import SIZES, build
    from modeling_gptlite.data.sources import SourceArguments, open_source
    from tokenization import build_char_tokenizer

    tokenizer = build_char_tokenizer(open_source(SourceArguments(dataset=dataset)).texts())
    model = build("GPT-2", SIZES["cpu"])
    model.resize_token_embeddings(len(tokenizer))
    model.config.bos_token_id = model.config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="training runs of each")
    parser.add_argument(
        "--recipes", nargs="+", default=["sprint", "quickstart"], help="of this package; flags may follow in quotes"
    )
    parser.add_argument("--gpt2", action="store_true", help="also train transformers' GPT-2")
    parser.add_argument("--write_gpt2", help=argparse.SUPPRESS)
    parser.add_argument("--nanogpt", default="", help="folder of a checkout of nanoGPT")
    options = parser.parse_args()
    if options.write_gpt2:
        print(json.dumps(write_gpt2(options.write_gpt2)))
        return

    seeds = {name: iter(range(1, options.rounds + 1)) for name in [*options.recipes, GPT2]}
    runs = {name: (lambda name=name: run_recipe(name, next(seeds[name]))) for name in options.recipes}
    if options.nanogpt:
        runs["nanoGPT"] = lambda: run_nanogpt(options.nanogpt, NANOGPT_ON_A_CPU)
    if options.gpt2:
        runs[GPT2] = lambda: run_gpt2(next(seeds[GPT2]))
    curves: dict[str, list] = {}

    def measure(name: str) -> dict:
        figures = runs[name]()
        curves[name] = [[round(value, 4) for value in point] for point in figures.pop("curve")]  # of the last round
        return figures

    measures = {name: (lambda name=name: measure(name)) for name in runs}
    results = common.measure_in_turn(measures, options.rounds)
    table = common.ratios(results, "seconds", [(name, "nanoGPT") for name in options.recipes])
    name, now = f"time_to_loss-{common.cpu_kind()}", datetime.now(UTC).isoformat(timespec="seconds")
    parts = {"results": results, "ratios": table, "curves": curves, "measured": dict.fromkeys(runs, now)}
    before = common.recorded(name)
    together = {part: {**before.get(part, {}), **figures} for part, figures in parts.items()}
    common.record(name, "whole runs: seconds, and the final validation loss", **together)


if __name__ == "__main__":
    main()
