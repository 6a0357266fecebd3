"""The tables of measurements in the README, docs/speed.md and docs/scaling.md, from `benchmarks/results/*.json`.

python -m benchmarks.table   # updates the three pages
"""

import json
import statistics
from collections.abc import Iterable, Iterator

from benchmarks.common import RESULTS, ROOT


README, SPEED, SCALING = ROOT / "README.md", ROOT / "docs" / "speed.md", ROOT / "docs" / "scaling.md"
FINE_TUNING = ROOT / "docs" / "fine_tuning.md"
BEGIN, END = "<!-- {}: made by `python -m benchmarks.table` -->", "<!-- end of {} -->"
GPT2, QWEN3 = "transformers' GPT-2", "transformers' Qwen3"

# What is compared, record, section of the record, ours, theirs, and the name of theirs in the table
SPEEDS = [
    ("training, 0.8M, fp32", "train_speed", "size_cpu", "gptlite nanogpt fp32", "nanoGPT", "nanoGPT"),
    ("training, 0.8M, fp32", "train_speed", "size_cpu", "gptlite nanogpt fp32", "GPT-2, same Trainer", GPT2),
    ("training, 0.8M, default", "train_speed", "size_cpu", "gptlite nanogpt auto", "GPT-2, same Trainer", GPT2),
    ("training, 10.7M, fp32", "train_speed", "size_10m", "gptlite nanogpt fp32", "nanoGPT", "nanoGPT"),
    ("training, 10.7M, default", "train_speed", "size_10m", "gptlite nanogpt auto", "GPT-2, same Trainer", GPT2),
    ("training, 10.7M, default", "train_speed", "size_10m", "gptlite modern auto", "Qwen3, same Trainer", QWEN3),
]
for streams in (1, 16):
    texts = "generation, 1 text" if streams == 1 else f"generation, {streams} texts"
    for preset, way, shown in (
        ("modern-10m", "plain", "plain PyTorch"),
        ("classic-10m", "plain", "plain PyTorch"),
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


# Those of the README
SHORT = [
    ("training, 10.7M, default", GPT2),
    ("generation, 1 text, `modern-10m`, plain PyTorch", GPT2),
    ("generation, 1 text, `modern-10m`, engine, int8", GPT2),
    ("generation, 1 text, `modern-10m`, engine, int8", "llama.cpp, q8_0"),
    ("generation, 16 texts, `modern-10m`, engine, int8", GPT2),
]

GPU_FIGURES = ("validation_loss", "training_seconds", "tokens_per_second", "model_flops_utilisation", "bit_identical")

# The ending of a record's name is the kind of CPU
NAMES = "generate_speed", "time_to_loss"
MACHINES = sorted({path.stem.removeprefix(name) for name in NAMES for path in RESULTS.glob(f"{name}*.json")})


def load(name: str, machine: str) -> dict:
    path = RESULTS / f"{name}{machine}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def describe(machine: str) -> str:
    found = (load(name, machine).get("environment") for name in NAMES)
    return next(environment["hardware"] for environment in found if environment) + machine.replace("-", ", ", 1)


def rows(machine: str) -> Iterator[tuple[str, str, str, str, str]]:
    """What was measured on a machine: what, compared with, tokens per second of both, and their ratio."""
    for what, name, part, ours, theirs, shown in SPEEDS:
        section = load(name, machine).get(part, {})
        if {ours, theirs} <= section.get("results", {}).keys():
            speeds = [statistics.median(section["results"][who]["tokens_per_second"]) for who in (ours, theirs)]
            ratio = section["ratios"][f"{ours} / {theirs}"]
            spread = f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"
            yield what, shown, *(f"{speed:,.0f}" for speed in speeds), spread


def loss_rows(machine: str) -> Iterator[tuple[str, str, str]]:
    """Whole runs on a machine: what, seconds, validation loss."""
    for name, figures in load("time_to_loss", machine).get("results", {}).items():
        shown = {"nanoGPT": "nanoGPT's CPU example", GPT2: f"{GPT2}, the same settings"}.get(name, f"`{name}`")
        losses = figures["validation_loss"]
        spread = f"{statistics.mean(losses):.3f} ({min(losses):.3f} to {max(losses):.3f})"
        yield shown, f"{statistics.median(figures['seconds']):.0f} s", spread


def memory_rows(machine: str) -> Iterator[tuple[str, str]]:
    for shown, part in (("0.8M", "size_cpu"), ("10.7M", "size_10m")):
        figures = load("train_speed", machine).get(part, {}).get("results", {}).get("gptlite modern auto")
        if figures:
            yield f"training, {shown}, default", f"{statistics.median(figures['peak_megabytes']):,.0f} MB"


def markdown(titles: str, found: Iterable[tuple[str, ...]]) -> list[str]:
    """A table, or nothing if nothing was measured."""
    lines = [f"| {' | '.join(cells)} |" for cells in found]
    columns = titles.count("|") + 1
    return [f"| {titles} |", "|" + "---|" * columns, *lines, ""] if lines else []


def page_tables() -> str:
    """All measurements, a section for each machine."""
    lines = []
    for machine in MACHINES:
        lines += [f"## {describe(machine)}", ""]
        lines += markdown(
            "tokens per second | compared with | ours | theirs | ratio (range over rounds)", rows(machine)
        )
        lines += markdown("whole run | time | validation loss (range over seeds)", loss_rows(machine))
        lines += markdown("what | peak memory", memory_rows(machine))
    return "\n".join(lines).rstrip()


def readme_table() -> str:
    """The rows of `SHORT`, and the time and loss of whole runs, on the machine with most measurements."""
    machine = max(MACHINES, key=lambda machine: len(list(rows(machine))))
    versions = load("generate_speed", machine)["environment"]["versions"]
    found = {(what, shown): cells for what, shown, *cells in rows(machine)}
    lines = markdown(
        "tokens per second | compared with | ours | theirs | ratio",
        [(what, shown, *found[what, shown]) for what, shown in SHORT],
    )
    newest = max(MACHINES, key=lambda machine: load("time_to_loss", machine).get("environment", {}).get("date", ""))
    runs = {name: (seconds, loss) for name, seconds, loss in loss_rows(newest)}
    shown = [name for name in ("`sprint`", "`quickstart`", "`record`", "nanoGPT's CPU example") if name in runs]
    lines += [f"Whole runs on {describe(newest)}:", ""]
    lines += markdown("whole run | time | validation loss", [(name, *runs[name]) for name in shown])
    head = f"On {describe(machine)}, with torch {versions['torch']} and transformers {versions['transformers']}:"
    return "\n".join([head, "", *lines, gpu_table()])


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


def pretrained_records() -> Iterator[dict]:
    for path in sorted(RESULTS.glob("pretrained-*.json")):
        yield json.loads(path.read_text(encoding="utf-8"))


def by_road(runs: dict[str, dict]) -> dict[tuple[str, float], dict[str, dict]]:
    """The whole runs of a record of `benchmarks.pretrained`: by text and minutes, then by how they begin."""
    found: dict[tuple[str, float], dict[str, dict]] = {}
    for key, figures in runs.items():
        text, minutes, road = key.split(", ")
        found.setdefault((text, float(minutes.split()[0])), {})[road] = figures
    return dict(sorted(found.items()))


def untouched(runs: dict[tuple[str, float], dict[str, dict]]) -> Iterator[tuple[str, float]]:
    """Texts, and their bits per character before training: a run of a minute has no time to measure them."""
    for (text, _), roads in runs.items():
        if (before := roads.get("pretrained", {}).get("before")) is not None:
            yield text, before


def runs_table() -> str:
    """Whole runs from a pretrained model and from scratch, in bits per character."""
    lines = []
    for record in pretrained_records():
        found, runs = [], by_road(record.get("runs", {}))
        before = dict(untouched(runs))
        for (text, minutes), roads in runs.items():
            tuned, new = roads.get("pretrained", {}), roads.get("scratch", {})
            cells = (before.get(text), tuned.get("bits_per_character"), new.get("bits_per_character"))
            peaks = (f"{road['peak_gigabytes']:.1f}" for road in (tuned, new) if road)
            shown = ("" if cell is None else f"{cell:.3f}" for cell in cells)
            found.append((text, f"{minutes:g}", *shown, " / ".join(peaks)))
        titles = "text | minutes | SmolLM2-135M, untouched | fine-tuned | from scratch | peak memory of both, GB"
        lines += markdown(titles, found)
    return "\n".join(lines).rstrip()


def fine_tuning_tables() -> str:
    """Memory, predicted and real, and the speed beside transformers' Trainer."""
    lines = []
    for record in pretrained_records():
        lines += [f"On {record['environment']['hardware']}:", ""]
        memory = (
            (what, f"{row['predicted']:.1f} GB", f"{row['real']:.1f} GB") for what, row in record["memory"].items()
        )
        lines += markdown("what is trained, 768 tokens | predicted | real", memory)
        results, found = record["speed"]["results"], record["speed"]["ratios"]
        speeds = []
        for side, figures in results.items():
            row = [
                side,
                *(f"{statistics.median(figures[name]):,.3g}" for name in ("tokens_per_second", "peak_gigabytes")),
            ]
            ratio = found["tokens_per_second"].get(f"{side} / transformers")
            speeds.append((*row, f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})" if ratio else ""))
        lines += markdown("SmolLM2-135M, 4 x 256 tokens | tokens per second | peak memory, GB | ratio of speed", speeds)
    return "\n".join(lines).rstrip()


def with_table(page: str, name: str, table: str) -> str:
    """A page with one of its tables as the current records give it."""
    begin, end = BEGIN.format(name), END.format(name)
    before, rest = page.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}\n{table}\n{end}{after}"


TABLES = {
    (README, "measurements"): readme_table,
    (README, "fine-tuning"): runs_table,
    (SPEED, "measurements"): page_tables,
    (SCALING, "measurements"): gpu_table,
    (FINE_TUNING, "measurements"): fine_tuning_tables,
}


def main():
    for (path, name), table in TABLES.items():
        path.write_text(with_table(path.read_text(encoding="utf-8"), name, table()), encoding="utf-8")


if __name__ == "__main__":
    main()
