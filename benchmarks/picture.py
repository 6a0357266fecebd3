"""The pictures of loss over time in the README, drawn from the records in `benchmarks/results`.

python -m benchmarks.picture   # updates docs/images/loss_over_time.png and docs/images/fine_tuning.png
"""

import itertools
import json
import re
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from benchmarks.common import RESULTS, ROOT
from benchmarks.table import by_road, pretrained_records, untouched


IMAGES = ROOT / "docs" / "images"
COLORS = ("#c2410c", "#ea9a5c", "#7c2d12", "#d97706")  # of this package
OTHERS = ("#475569", "#94a3b8")


def curves() -> dict[str, dict]:
    """The records that hold curves, by the kind of CPU."""
    paths = sorted(RESULTS.glob("time_to_loss-*.json"))
    found = {path.stem.removeprefix("time_to_loss-"): json.loads(path.read_text(encoding="utf-8")) for path in paths}
    return {kind: record for kind, record in found.items() if "curves" in record}


def draw(by_kind: dict[str, dict], path: Path) -> None:
    """Save a plot of validation loss over seconds of training, with one panel for each kind of CPU."""
    figure = Figure(figsize=(max(5, 3.6 * len(by_kind)), 4.2), dpi=120, layout="constrained")
    panels = figure.subplots(1, len(by_kind), sharey=True, squeeze=False)[0]
    for axes, (kind, record) in zip(panels, by_kind.items(), strict=True):
        ours, others = itertools.cycle(COLORS), itertools.cycle(OTHERS)
        for name, curve in record["curves"].items():
            color = next(others) if "GPT" in name else next(ours)
            seconds, losses = zip(*curve, strict=True)
            shown = re.sub(r" --max_steps (\d+) .*", r", \1 steps", name)  # how often it is evaluated is to be seen
            label = f"{shown}: {losses[-1]:.3f}"
            axes.plot(seconds, losses, color=color, marker="o", markersize=3, label=label)
        axes.set(title=f"{record['environment']['hardware']}\n{kind}", xlabel="seconds of training", xscale="log")
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_title(axes.get_title(), fontsize=10)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8, loc="lower left")
    panels[0].set_ylabel("validation loss (nats per character)")
    figure.savefig(path, metadata={"Software": None})


def draw_roads(runs: dict[str, dict], path: Path) -> None:
    """Save a plot of bits per character over minutes, from a pretrained model and from scratch; a panel per text.

    Args:
        runs: The whole runs in a record of `benchmarks.pretrained`.
    """
    texts: dict[str, dict[str, dict[float, dict]]] = {}
    for (text, minutes), roads in by_road(runs).items():
        for road, figures in roads.items():
            texts.setdefault(text, {}).setdefault(road, {})[minutes] = figures
    figure = Figure(figsize=(9, 3.6), dpi=120, layout="constrained")
    panels = figure.subplots(1, len(texts), sharey=True, squeeze=False)[0]
    for axes, (text, roads) in zip(panels, texts.items(), strict=True):
        for road, by_minutes in sorted(roads.items()):
            minutes, found = list(by_minutes), list(by_minutes.values())
            bits = [figures["bits_per_character"] for figures in found]
            label = "from SmolLM2-135M" if road == "pretrained" else "from scratch"
            color = COLORS[0] if road == "pretrained" else OTHERS[0]
            axes.plot(minutes, bits, color=color, marker="o", markersize=4, label=label)
            for each, value in zip(minutes, bits, strict=True):
                axes.annotate(
                    f"{value:.2f}", (each, value), (0, 6), textcoords="offset points", fontsize=8, ha="center"
                )
        if (before := dict(untouched(by_road(runs))).get(text)) is not None:
            axes.axhline(before, color=COLORS[0], linestyle=":", linewidth=1, label="SmolLM2-135M, untouched")
        axes.set(title=text, xlabel="minutes of training", xscale="log")
        axes.set_xticks(sorted({each for by_minutes in roads.values() for each in by_minutes}), minor=False)
        axes.minorticks_off()
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.margins(x=0.15, y=0.15)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    panels[0].set_ylabel("bits per character")
    figure.savefig(path, metadata={"Software": None})


if __name__ == "__main__":
    draw(curves(), IMAGES / "loss_over_time.png")
    draw_roads(next(record["runs"] for record in pretrained_records() if "runs" in record), IMAGES / "fine_tuning.png")
