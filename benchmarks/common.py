"""What the benchmarks share: the text, measuring in turn, ratios with their spread, the record of a run, nanoGPT.

Every benchmark measures this package and its peers in turn (A B A B ...) in one invocation and takes ratios round by
round, so that a machine that slows down slows both. A measurement is a process of its own: so is its peak memory, and
nothing that one leaves behind helps or hurts the next.
"""

import importlib.util
import json
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch


ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"


def corpus_ids():
    """Tiny Shakespeare's two splits as ids of its 65 characters."""
    from modeling_gptlite.training.data import load_source
    from tokenization import build_char_tokenizer, encode_corpus

    text = "".join(load_source("tinyshakespeare").pieces())
    tokenizer = build_char_tokenizer(text, special_tokens=False)
    cut = int(len(text) * 0.9)
    return encode_corpus(text[:cut], tokenizer), encode_corpus(text[cut:], tokenizer)


def load_nanogpt(folder: str | Path):
    """The module `model.py` of a checkout of nanoGPT, which is never copied into this repository."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", Path(folder) / "model.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def peak_megabytes() -> float:
    """The most memory that this process has had resident so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def in_a_process(module: str, *arguments: str) -> dict:
    """Run `python -m MODULE ARGUMENTS` and read the JSON object that is its last line."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure_in_turn(measures: dict[str, Callable[[], dict]], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Call every measure once a round; gives for each name and figure the values of all rounds."""
    results: dict[str, dict[str, list[float]]] = {name: {} for name in measures}
    for number in range(rounds):
        for name, measure in measures.items():
            figures = measure()
            for figure, value in figures.items():
                results[name].setdefault(figure, []).append(value)
            shown = ", ".join(f"{figure} {value:,.4g}" for figure, value in figures.items())
            print(f"round {number + 1}/{rounds}  {name}: {shown}", flush=True)
    return results


def ratios(results: dict, figure: str, pairs: list[tuple[str, str]]) -> dict[str, dict[str, float]]:
    """Of `figure`, ours over theirs, round by round: median, smallest, largest."""
    table = {}
    for ours, theirs in pairs:
        if ours in results and theirs in results:
            by_round = [a / b for a, b in zip(results[ours][figure], results[theirs][figure], strict=True)]
            table[f"{ours} / {theirs}"] = {
                "median": statistics.median(by_round),
                "min": min(by_round),
                "max": max(by_round),
            }
    for name, row in table.items():
        print(f"{figure}, {name}: {row['median']:.3f} ({row['min']:.3f} to {row['max']:.3f})", flush=True)
    return table


def record(name: str, what: str, **fields) -> None:
    """Write `results/NAME.json`: what was measured, on what, when, and the figures."""
    from modeling_gptlite.training.report import describe_environment

    RESULTS.mkdir(exist_ok=True)
    entry = {
        "what": what,
        "environment": describe_environment(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        **fields,
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(entry, indent=2) + "\n")
