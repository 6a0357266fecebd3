"""The tables of measurements in the README and in docs/scaling.md, generated from `benchmarks/results/*.json`.

python -m benchmarks.table   # updates both
"""

import json
import statistics
from collections.abc import Iterator

from benchmarks.common import RESULTS, ROOT


README, SCALING = ROOT / "README.md", ROOT / "docs" / "scaling.md"
BEGIN, END = "<!-- measurements: made by `python -m benchmarks.table` -->", "<!-- end of measurements -->"
GPT2, QWEN3 = "transformers' GPT-2", "transformers' Qwen3"

GPU_FIGURES = ("validation_loss", "training_seconds", "tokens_per_second", "model_flops_utilisation", "bit_identical")

# What is compared, record, section of the record, ours, theirs, and the name of theirs in the table
SPEEDS = [
    ("training, 0.8M, fp32", "train_speed", "size_cpu", "gptlite nanogpt fp32", "nanoGPT", "nanoGPT"),
    ("training, 0.8M, fp32", "train_speed", "size_cpu", "gptlite nanogpt fp32", "GPT-2, same Trainer", GPT2),
    ("training, 0.8M, as chosen", "train_speed", "size_cpu", "gptlite nanogpt auto", "GPT-2, same Trainer", GPT2),
    ("training, 10.7M, fp32", "train_speed", "size_10m", "gptlite nanogpt fp32", "nanoGPT", "nanoGPT"),
    ("training, 10.7M, as chosen", "train_speed", "size_10m", "gptlite nanogpt auto", "GPT-2, same Trainer", GPT2),
    ("training, 10.7M, as chosen", "train_speed", "size_10m", "gptlite modern auto", "Qwen3, same Trainer", QWEN3),
]
for streams in (1, 16):
    texts = "generation, 1 text" if streams == 1 else f"generation, {streams} texts"
    for preset, way, shown in (
        ("modern-10m", "plain", "plain"),
        ("classic-10m", "plain", "plain"),
        ("modern-10m", "engine float32", "engine, float32"),
        ("modern-10m", "engine int8", "engine, int8"),
        ("classic-10m", "engine int8", "engine, int8"),
    ):
        compared = f"{texts}, `{preset}`, {shown}", "generate_speed", f"streams_{streams}", f"{preset} {way}"
        SPEEDS.append((*compared, "transformers GPT-2", GPT2))
        if way != "plain":
            SPEEDS.append((*compared, "nanoGPT", "nanoGPT"))
        if streams == 1 and way.startswith("engine"):
            dtype = "f32" if "float32" in way else "q8_0"
            SPEEDS.append((*compared, f"llama.cpp {dtype}", f"llama.cpp, {dtype}"))


# The ending of a record's name is the kind of CPU
MACHINES = sorted({path.stem.removeprefix("generate_speed") for path in RESULTS.glob("generate_speed*.json")})


def load(name: str, machine: str) -> dict:
    path = RESULTS / f"{name}{machine}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def describe(machine: str) -> str:
    environment = load("generate_speed", machine)["environment"]
    return environment["hardware"] + machine.replace("-", ", ", 1)


def row(first: str, cells: list[str]) -> Iterator[str]:
    """A row of the table, unless no machine has measured it."""
    if any(cells):
        yield f"| {first} | {' | '.join(cell or '-' for cell in cells)} |"


def speed_cell(section: dict, ours: str, theirs: str) -> str:
    if not {ours, theirs} <= section.get("results", {}).keys():
        return ""
    ratio = section["ratios"][f"{ours} / {theirs}"]
    figures = [statistics.median(section["results"][who]["tokens_per_second"]) for who in (ours, theirs)]
    spread = f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"
    return f"{figures[0]:,.0f} to {figures[1]:,.0f}: {spread}"


def speed_rows() -> Iterator[str]:
    for what, name, part, ours, theirs, shown in SPEEDS:
        sections = [load(name, machine).get(part, {}) for machine in MACHINES]
        yield from row(f"{what} | {shown}", [speed_cell(section, ours, theirs) for section in sections])


def loss_cell(figures: dict) -> str:
    if not figures:
        return ""
    losses = figures["validation_loss"]
    spread = f"{statistics.mean(losses):.3f} ({min(losses):.3f} to {max(losses):.3f})"
    return f"{statistics.median(figures['seconds']):.0f} s, {spread}"


def loss_rows() -> Iterator[str]:
    results = [load("time_to_loss", machine).get("results", {}) for machine in MACHINES]
    for name in dict.fromkeys(name for machine in results for name in machine):
        shown = {"nanoGPT": "nanoGPT's CPU example", GPT2: f"{GPT2}, the same settings"}.get(name, f"`{name}`")
        yield from row(shown, [loss_cell(machine.get(name, {})) for machine in results])


def memory_rows() -> Iterator[str]:
    for shown, part in (("0.8M", "size_cpu"), ("10.7M", "size_10m")):
        cells = []
        for machine in MACHINES:
            figures = load("train_speed", machine).get(part, {}).get("results", {}).get("gptlite modern auto")
            cells.append(f"{statistics.median(figures['peak_megabytes']):,.0f} MB" if figures else "")
        yield from row(f"peak memory of training, {shown}, as chosen", cells)


def gpu_rows() -> Iterator[str]:
    """A row for each thing that has figures, the median over its rounds; what only runs or breaks is counted."""
    for path in sorted(RESULTS.glob("gpu_*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        first = f"| {path.stem.removeprefix('gpu_')}, {{}} | {record['environment']['hardware']} | {{}} |"
        rounds: dict[str, list[dict]] = {}
        for name, figures in record["results"].items():
            rounds.setdefault(name.split(", round")[0], []).append(figures)
        broke = [name for name, figures in record["results"].items() if "error" in figures]
        yield first.format("all", f"{len(record['results']) - len(broke)} of {len(record['results'])} ran")
        for name, measured in rounds.items():
            known = [figure for figure in GPU_FIGURES if all(figures.get(figure) is not None for figures in measured)]
            medians = {figure: statistics.median(figures[figure] for figures in measured) for figure in known}
            if medians:
                shown = ", ".join(f"{figure.replace('_', ' ')} {value:,.4g}" for figure, value in medians.items())
                yield first.format(name, shown)


def gpu_table() -> str:
    rows = list(gpu_rows())
    if not rows:
        return (
            "Nothing has been measured on a GPU yet. On a machine with one, `python -m benchmarks.gpu --minutes 8` "
            "measures what depends on it."
        )
    return "\n".join(
        ["Measured on a GPU:", "", "| part of `benchmarks.gpu` | card | measured |", "|---|---|---|", *rows]
    )


def table() -> str:
    versions = load("generate_speed", MACHINES[0])["environment"]["versions"]
    machines, rules = " | ".join(describe(machine) for machine in MACHINES), "---|" * len(MACHINES)
    lines = [
        f"Tokens per second with torch {versions['torch']} and transformers {versions['transformers']}, measured "
        "alternately: this package to the other one, and the ratio (the median over rounds, with the range):",
        "",
        f"| what | compared with | {machines} |",
        f"|---|---|{rules}",
        *speed_rows(),
        "",
        "Whole runs, from the start of the process to the saved model, with the validation loss (range over seeds):",
        "",
        f"| what | {machines} |",
        f"|---|{rules}",
        *loss_rows(),
        *memory_rows(),
        "",
        gpu_table(),
    ]
    return "\n".join(lines)


def with_table(page: str, made: str) -> str:
    """The page with the table that the current records give."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{made}\n{END}{after}"


def main():
    for path, made in ((README, table()), (SCALING, gpu_table())):
        path.write_text(with_table(path.read_text(encoding="utf-8"), made), encoding="utf-8")


if __name__ == "__main__":
    main()
