"""Validation losses that `--preset auto` and fixed sizes reach in the same number of minutes.

    python -m benchmarks.budgets --minutes 1 5 --text tinyshakespeare.txt large.txt python-docs

Each run is a command of its own, alone on the machine, and takes the minutes that it is given. Its figures are added to
the record as soon as it ends, so that calls with other minutes, texts or models complete the same table.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import common


def fixed(preset: str, **fields: float) -> list[str]:
    """Flags of a run with a size of its own and the quickstart's rates."""
    return ["--config=quickstart", f"--preset={preset}", f"--model_overrides={json.dumps(fields)}"]


WIDTH_192 = {"hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 6}
MODELS = {
    "auto": ["--preset=auto"],
    "modern-1m": fixed("modern-1m"),
    "6 layers of width 192": fixed("modern-1m", **WIDTH_192),
    "6 layers of width 192, dropout 0.1": fixed("modern-1m", **WIDTH_192, hidden_dropout=0.1),
    "modern-10m": fixed("modern-10m"),
    "modern-10m, dropout 0.1": fixed("modern-10m", hidden_dropout=0.1),
    "modern-10m, dropout 0.2": fixed("modern-10m", hidden_dropout=0.2),
    "nanoGPT's CPU example": ["--config=nanogpt_cpu"],
}


def run(text: str, minutes: float, model: str, *more: str) -> dict:
    """The loss of a run and what it chose.

    Args:
        text: A file, or the name of a dataset.
    """
    source = f"--train_file={Path(text).resolve()}" if Path(text).exists() else f"--dataset={text}"
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "model")
        flags = [*MODELS[model], source, f"--minutes={minutes}", f"--output_dir={output}", *more]
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
        "commit": record["environment"]["commit"],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", nargs="+", type=float, default=[1, 5])
    parser.add_argument("--text", nargs="+", default=["python-docs"], help="text files or names of datasets")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    options = parser.parse_args()
    name = f"budgets-{common.cpu_kind()}"
    for minutes, text, model in itertools.product(options.minutes, options.text, options.models):
        cell = f"{Path(text).stem}, {minutes:g} minutes, {model}"
        figures = run(text, minutes, model)
        print(cell, figures, flush=True)
        results = common.recorded(name).get("results", {}) | {cell: figures}
        common.record(name, "losses of sizes in equal time", results=results)


if __name__ == "__main__":
    main()
