"""Whole runs, from process start to saved model: recipes of this package compared with nanoGPT's CPU example.

    python -m benchmarks.time_to_loss --nanogpt ../nanoGPT

nanoGPT estimates its loss on random windows. Here its saved checkpoint is evaluated like every model in this project:
over the whole validation split, in non-overlapping windows of the context length, with every target counted. Prepare
the data in the checkout first (`python data/shakespeare_char/prepare.py`).
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import common


NANOGPT_ON_A_CPU = """config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 --log_interval=100
    --block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --max_iters=2000 --lr_decay_iters=2000
    --dropout=0.0"""


def run_nanogpt(checkout: str, flags: str) -> dict:
    """Seconds of nanoGPT's `train.py` with these flags, and the loss of the checkpoint that it saved."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "train.py", *flags.split(), f"--out_dir={folder}"]
        began = time.perf_counter()
        subprocess.run(command, cwd=checkout, check=True, capture_output=True)
        seconds = time.perf_counter() - began
        loss = common.in_a_process("benchmarks.time_to_loss", "--nanogpt", checkout, "--evaluate", f"{folder}/ckpt.pt")
    return {"seconds": seconds, **loss}


def evaluate_nanogpt(checkout: str, checkpoint: str) -> dict:
    """Loss of a nanoGPT checkpoint over the whole validation split."""
    import torch

    from modeling_gptlite.data.windows import EvaluationWindows
    from modeling_gptlite.training.metrics import mean_loss, window_losses

    module = common.load_nanogpt(checkout)
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
    model = module.GPT(module.GPTConfig(**saved["model_args"])).eval()
    model.load_state_dict({name.removeprefix("_orig_mod."): value for name, value in saved["model"].items()})
    _, ids = common.corpus_ids()
    windows = EvaluationWindows(ids, model.config.block_size)
    per_window = []
    with torch.no_grad():
        for first in range(0, len(windows), 64):
            batch = windows.__getitems__(list(range(first, min(first + 64, len(windows)))))
            logits, _ = model(batch["input_ids"], batch["input_ids"])  # targets, to get all logits
            per_window.append(window_losses(logits, batch["shift_labels"]))
    return {"validation_loss": mean_loss(per_window)}


def run_recipe(name: str, seed: int) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["--config", f"recipes/{name}.yaml", "--output_dir", f"{folder}/model", "--seed", str(seed)]
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "scripts.train", *arguments], cwd=common.ROOT, check=True, capture_output=True
        )
        seconds = time.perf_counter() - began
        results = json.loads(Path(folder, "model", "run.json").read_text(encoding="utf-8"))["results"]
    return {
        "seconds": seconds,
        "training_seconds": results["train_seconds"],
        "validation_loss": results["loss"],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="training runs of each")
    parser.add_argument("--recipes", nargs="+", default=["sprint", "quickstart"], help="recipes of this package")
    parser.add_argument("--nanogpt", default="", help="folder of a checkout of nanoGPT")
    parser.add_argument("--evaluate", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.evaluate:
        print(json.dumps(evaluate_nanogpt(options.nanogpt, options.evaluate)))
        return

    seeds = {name: iter(range(1, options.rounds + 1)) for name in options.recipes}
    measures = {name: (lambda name=name: run_recipe(name, next(seeds[name]))) for name in options.recipes}
    if options.nanogpt:
        measures["nanoGPT"] = lambda: run_nanogpt(options.nanogpt, NANOGPT_ON_A_CPU)
    results = common.measure_in_turn(measures, options.rounds)
    table = common.ratios(results, "seconds", [(name, "nanoGPT") for name in options.recipes])
    common.record(
        f"time_to_loss-{common.cpu_kind()}",
        "whole runs: seconds, and the final validation loss",
        results=results,
        ratios=table,
    )


if __name__ == "__main__":
    main()
