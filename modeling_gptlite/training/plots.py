"""Pictures of a run."""

from pathlib import Path
from typing import Any

from .data import TINYSHAKESPEARE_SHA256


TRAINING, VALIDATION, REFERENCE = "#8b97a5", "#c2410c", "#475569"

# Validation loss in nats per character on the last tenth of tiny Shakespeare: nanoGPT's README for the GPU; its recipe
# for the CPU, trained again and measured over the whole split.
TINYSHAKESPEARE_LEVELS = {"nanoGPT, CPU recipe": 1.898, "nanoGPT, GPU recipe": 1.4697}


def published_levels(data: dict[str, Any]) -> dict[str, float]:
    """What others reached on the text of a run, where its losses can be compared: the same characters as tokens.

    Args:
        data: What `run.json` says of the text.
    """
    same_text = data["sha256"] == TINYSHAKESPEARE_SHA256 and data["validation_characters"] == 111_540
    by_character = data["train_tokens"] == data.get("train_characters")
    return TINYSHAKESPEARE_LEVELS if same_text and by_character else {}


def plot_run(
    log_history: list[dict], tokens_per_step: int, title: str, path: Path, levels: dict[str, float] | None = None
) -> None:
    """Losses over the tokens seen, the best validation loss marked; below them learning rate and gradient norm.

    Args:
        log_history: The Trainer's `state.log_history`.
        path: Of the PNG.
        levels: Losses to draw as reference lines, by their labels.
    """
    from matplotlib.figure import Figure  # not pyplot, which would change how a notebook shows its own pictures
    from matplotlib.ticker import EngFormatter

    def series(name):
        points = [(row["step"] * tokens_per_step, row[name]) for row in log_history if name in row]
        return list(zip(*points, strict=True)) or ((), ())

    figure = Figure(figsize=(8, 6), dpi=120, layout="constrained")
    axes = figure.subplot_mosaic([["loss", "loss"], ["rate", "norm"]], height_ratios=[2.4, 1])
    losses = axes["loss"]
    losses.plot(*series("loss"), color=TRAINING, linewidth=1.2, label="training")
    tokens, validation = series("eval_loss")
    if validation:
        losses.plot(tokens, validation, color=VALIDATION, marker="o", markersize=4, label="validation")
        best = min(range(len(validation)), key=validation.__getitem__)
        losses.plot(tokens[best], validation[best], "o", color=VALIDATION, markersize=9, markerfacecolor="none")
        losses.annotate(
            f"best {validation[best]:.4f}",
            (tokens[best], validation[best]),
            xytext=(0, 10),
            textcoords="offset points",
            ha="right",
            color=VALIDATION,
            fontweight="bold",
        )
    for label, level in (levels or {}).items():
        losses.axhline(level, color=REFERENCE, linewidth=0.8, linestyle=(0, (4, 3)))
        losses.annotate(
            f"{label}: {level}",
            (0.995, level),
            xycoords=("axes fraction", "data"),
            xytext=(0, 2),
            textcoords="offset points",
            ha="right",
            fontsize=8,
            color=REFERENCE,
        )
    losses.set(title=title, xlabel="tokens seen", ylabel="loss (nats per token)")
    losses.legend(frameon=False)
    axes["rate"].plot(*series("learning_rate"), color=REFERENCE, linewidth=1.2)
    axes["rate"].set(xlabel="tokens seen", ylabel="learning rate", ylim=(0, None))
    axes["norm"].plot(*series("grad_norm"), color=REFERENCE, linewidth=1.2)
    axes["norm"].set(xlabel="tokens seen", ylabel="gradient norm", ylim=(0, None))
    for panel in axes.values():
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
        panel.set_xlim(left=0)
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
