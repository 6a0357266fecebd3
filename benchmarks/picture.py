"""The picture of loss over time in the README, drawn from `benchmarks/results/time_to_loss-*.json`.

python -m benchmarks.picture   # updates docs/images/loss_over_time.png
"""

import json
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from benchmarks.common import RESULTS, ROOT


PICTURE = ROOT / "docs" / "images" / "loss_over_time.png"
COLORS = ("#c2410c", "#ea9a5c", "#7c2d12", "#d97706")  # of this package
OTHERS = ("#475569", "#94a3b8")


def records() -> dict[str, dict]:
    """The records that hold curves, by the kind of CPU."""
    paths = sorted(RESULTS.glob("time_to_loss-*.json"))
    found = {path.stem.removeprefix("time_to_loss-"): json.loads(path.read_text(encoding="utf-8")) for path in paths}
    return {kind: record for kind, record in found.items() if "curves" in record}


def draw(by_kind: dict[str, dict], path: Path) -> None:
    """Save a plot of validation loss over seconds of training, with one panel for each kind of CPU."""
    figure = Figure(figsize=(9, 4), dpi=120, layout="constrained")
    panels = figure.subplots(1, len(by_kind), sharey=True, squeeze=False)[0]
    for axes, (kind, record) in zip(panels, by_kind.items(), strict=True):
        ours, others = iter(COLORS), iter(OTHERS)
        for name, curve in record["curves"].items():
            color = next(others) if "GPT" in name else next(ours)
            seconds, losses = zip(*curve, strict=True)
            label = f"{name.split(' --eval')[0]}: {losses[-1]:.3f}"  # how often it is evaluated is to be seen
            axes.plot(seconds, losses, color=color, marker="o", markersize=3, label=label)
        axes.set(title=f"{record['environment']['hardware']}, {kind}", xlabel="seconds of training", xscale="log")
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.set_title(axes.get_title(), fontsize=10)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    panels[0].set_ylabel("validation loss (nats per character)")
    figure.savefig(path, metadata={"Software": None})


if __name__ == "__main__":
    draw(records(), PICTURE)
