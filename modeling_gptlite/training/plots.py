"""Pictures of a run."""

from pathlib import Path


def plot_losses(log_history: list[dict], tokens_per_step: int, title: str, path: Path) -> None:
    """Training and validation loss over the tokens seen, the best validation loss marked, as a PNG.

    Args:
        log_history: The Trainer's `state.log_history`.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import EngFormatter

    train = [(row["step"] * tokens_per_step, row["loss"]) for row in log_history if "loss" in row]
    validation = [(row["step"] * tokens_per_step, row["eval_loss"]) for row in log_history if "eval_loss" in row]
    figure, axes = plt.subplots(figsize=(8, 4.5), dpi=120, layout="constrained")
    if train:
        axes.plot(*zip(*train, strict=True), color="#9aa5b1", linewidth=1, label="training")
    if validation:
        axes.plot(*zip(*validation, strict=True), color="#c2410c", marker="o", markersize=4, label="validation")
        tokens, loss = min(validation, key=lambda point: point[1])
        axes.annotate(
            f"{loss:.4f}", (tokens, loss), xytext=(0, 12), textcoords="offset points", ha="center", color="#c2410c"
        )
    axes.set(title=title, xlabel="tokens seen", ylabel="loss (nats per token)")
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path)
    plt.close(figure)
