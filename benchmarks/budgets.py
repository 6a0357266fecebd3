"""Validation losses that `--preset auto` and fixed sizes reach in the same number of minutes.

    python -m benchmarks.budgets --minutes 1 --train_file tinyshakespeare.txt large.txt

Each run is a command of its own, alone on the machine, and takes the minutes that it is given. One text is always the
documentation that Python contains.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import common


# Fixed sizes with the quickstart's rates, and nanoGPT's CPU example
MODELS = {
    "auto": ["--preset=auto"],
    "modern-1m": ["--config=quickstart", "--preset=modern-1m"],
    "modern-10m": ["--config=quickstart", "--preset=modern-10m"],
    "nanoGPT's CPU example": ["--config=nanogpt_cpu"],
}


def run(text: list[str], minutes: float, model: str, *more: str) -> dict:
    """The loss of a run and what it chose."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "model")
        flags = [*MODELS[model], *text, f"--minutes={minutes}", f"--output_dir={output}", *more]
        subprocess.run(
            [sys.executable, "-m", "scripts.train", *flags], cwd=common.ROOT, check=True, capture_output=True
        )
        record = json.loads((output / "run.json").read_text(encoding="utf-8"))
    results = record["results"]
    return {
        "validation_loss": results["loss"],
        "training_seconds": results["train_seconds"],
        "steps": results["steps"],
        "parameters": record["parameters"],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", nargs="+", type=float, default=[1, 5])
    parser.add_argument("--train_file", nargs="*", default=[], help="text files, one run for each")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    options = parser.parse_args()
    texts = {Path(path).stem: [f"--train_file={path}"] for path in options.train_file}
    texts["python-docs"] = ["--dataset=python-docs"]
    results = {}
    for minutes in options.minutes:
        for name, text in texts.items():
            for model in options.models:
                cell = f"{name}, {minutes:g} minutes, {model}"
                results[cell] = run(text, minutes, model)
                print(cell, results[cell], flush=True)
    common.record(f"budgets-{common.cpu_kind()}", "losses of sizes in equal time", results=results)


if __name__ == "__main__":
    main()
