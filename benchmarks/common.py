"""Shared by the benchmarks: the text, alternating measurements, ratios with their spread, records, nanoGPT.

Every benchmark measures this package and its peers alternately (A B A B ...) in one invocation and computes ratios
round by round, so that a slower minute affects both sides. Each measurement runs in a new process, so peak memory is
its own and no cache carries over to the next one.
"""

import importlib.util
import json
import re
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
    """The training and validation split of tiny Shakespeare as ids of its 65 characters."""
    from modeling_gptlite.data.sources import SourceArguments, open_source
    from tokenization import build_char_tokenizer, encode_corpus

    text = "".join(open_source(SourceArguments(dataset="tinyshakespeare")).texts())
    tokenizer = build_char_tokenizer(text, special_tokens=False)
    cut = int(len(text) * 0.9)
    return encode_corpus(text[:cut], tokenizer), encode_corpus(text[cut:], tokenizer)


def load_nanogpt(folder: str | Path):
    """The module `model.py` of a nanoGPT checkout; its code is not part of this repository."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", Path(folder) / "model.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def peak_megabytes() -> float:
    """Peak resident memory of this process so far, without that of the process that started it."""
    status = Path("/proc/self/status")
    if status.exists():  # on Linux, what `getrusage` tells begins with the parent's peak
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def in_a_process(module: str, *arguments: str) -> dict:
    """Run `python -m MODULE ARGUMENTS` and return the JSON object in the last line of its output."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure_in_turn(measures: dict[str, Callable[[], dict]], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Call every measure once per round. Returns the values of all rounds, by name and figure."""
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
    """Ours divided by theirs for `figure`, computed in each round: median, minimum and maximum."""
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


ZEN = {25: "zen4", 26: "zen5"}  # AMD's families that multiply bf16; the later one is twice as fast


def cpu_facts() -> dict[str, str | bool | None]:
    """The instructions that decide how fast a CPU multiplies, and which of them PyTorch uses (its `capability`)."""
    return {
        "capability": torch.backends.cpu.get_cpu_capability(),
        "bf16": torch.cpu._is_avx512_bf16_supported(),
        "amx": torch.cpu._is_amx_tile_supported(),
        "vnni": torch.cpu._is_vnni_supported(),
        "zen": amd_core(),
    }


def amd_core(path: Path = Path("/proc/cpuinfo")) -> str | None:
    """The generation of an AMD processor in `ZEN`; its name does not say it on a virtual machine."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    found = re.search(r"vendor_id\s*: AuthenticAMD\ncpu family\s*: (\d+)", text)
    return ZEN.get(int(found[1])) if found else None


def cpu_kind() -> str:
    """What a record's name ends with, so that each kind of CPU keeps its own: "avx2", "avx512-bf16-zen5", ..."""
    facts = cpu_facts()
    kind = str(facts["capability"]).lower()
    if not kind.startswith("avx512"):
        return kind
    core = f"-{facts['zen']}" if facts["bf16"] and facts["zen"] else ""
    return kind + ("-amx" if facts["amx"] else "-bf16" if facts["bf16"] else "") + core


def record(name: str, what: str, folder: Path = RESULTS, **fields) -> None:
    """Write `NAME.json` in `folder`: what was measured, the environment and its CPU, the date, and the figures."""
    from modeling_gptlite.runs.record import describe_environment

    folder.mkdir(parents=True, exist_ok=True)
    environment = describe_environment(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    entry = {"what": what, "environment": {**environment, "cpu": cpu_facts()}, **fields}
    (folder / f"{name}.json").write_text(json.dumps(entry, indent=2) + "\n")


def recorded(name: str, folder: Path = RESULTS) -> dict:
    """What `record` wrote; empty if nothing."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
