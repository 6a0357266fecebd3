"""The plot of a run: losses, learning rate and gradient norm over the tokens seen.

plot_run(trainer.state.log_history, tokens_per_step=1536, title="quickstart", path=Path("out/quickstart/loss.png"))
"""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure  # not pyplot: that would change how a notebook shows its own figures
from matplotlib.ticker import EngFormatter

from ..data.sources import TINYSHAKESPEARE_SHA256


TRAINING, VALIDATION, REFERENCE = "#8b97a5", "#c2410c", "#475569"
DASHES = ((0, (6, 3)), (0, (2, 2)))

# Validation loss in nats per character on the last tenth of tiny Shakespeare. GPU recipe: from nanoGPT's README. CPU
# recipe: trained again, and measured over the whole split.
TINYSHAKESPEARE_LEVELS = {"nanoGPT, CPU recipe": 1.898, "nanoGPT, GPU recipe": 1.4697}


def published_levels(data: dict[str, Any]) -> dict[str, float]:
    """Published losses that the losses of a run can be compared with: on the same text, with characters as tokens.

    Args:
        data: What `run.json` says about the text.
    """
    same_text = data["sha256"] == TINYSHAKESPEARE_SHA256 and data["validation_characters"] == 111_540
    by_character = data["train_tokens"] == data.get("train_characters")
    return TINYSHAKESPEARE_LEVELS if same_text and by_character else {}


def plot_run(
    log_history: list[dict], tokens_per_step: int, title: str, path: Path, levels: dict[str, float] | None = None
) -> None:
    """Save a plot of the losses over the tokens seen; below it, learning rate and gradient norm.

    Args:
        log_history: The Trainer's `state.log_history`.
        path: Of the PNG file.
        levels: Losses to draw as reference lines, by their labels.
    """
    figure = Figure(figsize=(8, 6), dpi=120, layout="constrained")
    axes = figure.subplot_mosaic([["loss", "loss"], ["rate", "norm"]], height_ratios=[2.4, 1])
    panels = {"rate": ("learning_rate", "learning rate"), "norm": ("grad_norm", "gradient norm")}
    for key, (name, label) in panels.items():
        axes[key].plot(*_series(log_history, name, tokens_per_step), color=REFERENCE, linewidth=1.2)
        axes[key].set(ylabel=label, ylim=(0, None))
    _plot_losses(axes["loss"], log_history, tokens_per_step, levels or {})
    for panel in axes.values():
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
        panel.set(xlabel="tokens seen", xlim=(0, None))
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    figure.savefig(path)


def _plot_losses(axes: Axes, log_history: list[dict], tokens_per_step: int, levels: dict[str, float]) -> None:
    axes.plot(*_series(log_history, "loss", tokens_per_step), color=TRAINING, linewidth=1.2, label="training")
    tokens, validation = _series(log_history, "eval_loss", tokens_per_step)
    if validation:
        best = min(range(len(validation)), key=validation.__getitem__)
        label = f"validation, best {validation[best]:.4f}"
        axes.plot(tokens, validation, color=VALIDATION, marker="o", markersize=4, label=label)
        axes.plot(tokens[best], validation[best], "o", color=VALIDATION, markersize=9, markerfacecolor="none")
    for index, (name, level) in enumerate(levels.items()):
        dashes = DASHES[index % len(DASHES)]
        axes.axhline(level, color=REFERENCE, linewidth=0.8, linestyle=dashes, label=f"{name}: {level}")
    axes.set_ylabel("loss (nats per token)")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)  # above: it never hides a curve


def _series(log_history: list[dict], name: str, tokens_per_step: int) -> tuple[tuple, tuple]:
    points = [(row["step"] * tokens_per_step, row[name]) for row in log_history if name in row]
    tokens, values = zip(*points, strict=True) if points else ((), ())
    return tokens, values
