"""The README's table of measurements, made from the records under `benchmarks/results/`.

python -m benchmarks.table   # writes it into README.md
"""

import json
import statistics

from benchmarks.common import RESULTS, ROOT


README = ROOT / "README.md"
BEGIN, END = "<!-- measurements: made by `python -m benchmarks.table` -->", "<!-- end of measurements -->"
GPT2, QWEN3 = "transformers' GPT-2", "transformers' Qwen3"

# What is compared, record, part of the record, ours, theirs, and their name in the table
SPEEDS = [
    ("training, 0.8M, fp32", "train_speed", "size_cpu", "gptlite nanogpt fp32", "nanoGPT", "nanoGPT"),
    ("training, 0.8M, fp32", "train_speed", "size_cpu", "gptlite nanogpt fp32", "GPT-2, same Trainer", GPT2),
    ("training, 0.8M, as chosen", "train_speed", "size_cpu", "gptlite nanogpt auto", "GPT-2, same Trainer", GPT2),
    ("training, 10.7M, fp32", "train_speed", "size_10m", "gptlite nanogpt fp32", "nanoGPT", "nanoGPT"),
    ("training, 10.7M, as chosen", "train_speed", "size_10m", "gptlite nanogpt auto", "GPT-2, same Trainer", GPT2),
    ("training, 10.7M, as chosen", "train_speed", "size_10m", "gptlite modern auto", "Qwen3, same Trainer", QWEN3),
]
for streams in (1, 16):
    texts = "one text" if streams == 1 else f"{streams} texts"
    for preset, way, shown in (
        ("modern-10m", "plain", "plain"),
        ("classic-10m", "plain", "plain"),
        ("modern-10m", "int8 compiled", "int8, compiled"),
        ("classic-10m", "int8 compiled", "int8, compiled"),
    ):
        row = f"`{preset}`, {texts}, {shown}", "generate_speed", f"streams_{streams}", f"{preset} {way}"
        SPEEDS.append((*row, "transformers GPT-2", GPT2))
        if way != "plain":
            SPEEDS.append((*row, "nanoGPT", "nanoGPT"))


def load(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def speed_rows():
    for what, name, part, ours, theirs, shown in SPEEDS:
        section = load(name)[part]
        if theirs not in section["results"]:
            continue
        ratio = section["ratios"][f"{ours} / {theirs}"]
        figures = [statistics.median(section["results"][who]["tokens_per_second"]) for who in (ours, theirs)]
        spread = f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"
        yield f"| {what} | {figures[0]:,.0f} | {shown} | {figures[1]:,.0f} | {spread} |"


def loss_rows():
    results = load("time_to_loss")["results"]
    for name, figures in results.items():
        seconds = statistics.median(figures["seconds"])
        losses = figures["validation_loss"]
        shown = "nanoGPT's README recipe for a CPU" if name == "nanoGPT" else f"`{name}.yaml`"
        yield f"| {shown} | {seconds:.0f} | {statistics.mean(losses):.3f} ({min(losses):.3f} to {max(losses):.3f}) |"


def table() -> str:
    environment = load("generate_speed")["environment"]
    versions = environment["versions"]
    lines = [
        f"Measured in turn on {environment['hardware']} (torch {versions['torch']}, transformers "
        f"{versions['transformers']}), tokens per second; ratios round by round, the median and the spread:",
        "",
        "| what | ours | peer | theirs | ratio |",
        "|---|---|---|---|---|",
        *speed_rows(),
        "",
        "Whole processes, from start to saved model:",
        "",
        "| recipe | seconds | validation loss |",
        "|---|---|---|",
        *loss_rows(),
    ]
    return "\n".join(lines)


def with_table(readme: str) -> str:
    """The README with the table of the records as they are."""
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def main():
    README.write_text(with_table(README.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
