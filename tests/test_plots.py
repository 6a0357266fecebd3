"""`runs/plots.py`: the plot of the losses."""

import pytest

from modeling_gptlite.runs import plots


LOG = [
    {"step": 0, "sample": "x"},
    {"step": 10, "loss": 2.5, "learning_rate": 1e-3, "grad_norm": 1.5},
    {"step": 10, "eval_loss": 2.4},
    {"step": 20, "loss": 1.5, "learning_rate": 5e-4, "grad_norm": 1.0},
    {"step": 20, "eval_loss": 1.7},
    {"step": 30, "eval_loss": 1.8},
]


@pytest.fixture
def figure(monkeypatch):
    """The figure that `plot_run` saves and closes."""
    from matplotlib.figure import Figure

    saved, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, path: (saved.append(self), save(self, path)))
    return lambda: saved[-1]


def test_the_picture_shows_the_losses_the_best_and_what_others_reached(tmp_path, figure):
    plots.plot_run(LOG, 100, "run", tmp_path / "loss.png", {"somebody": 1.6})
    losses, rate, norm = figure().axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in losses.lines}
    assert lines["training"] == [[1000, 2.5], [2000, 1.5]]
    assert lines["validation, best 1.7000"] == [[1000, 2.4], [2000, 1.7], [3000, 1.8]]
    assert lines["somebody: 1.6"] == [[0, 1.6], [1, 1.6]]
    assert rate.lines[0].get_ydata().tolist() == [1e-3, 5e-4]
    assert norm.lines[0].get_ydata().tolist() == [1.5, 1.0]
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_no_label_hides_a_curve(tmp_path, figure):
    """Every label is in the legend, and the legend is above the axes."""
    plots.plot_run(LOG, 100, "run", tmp_path / "loss.png", {"one": 1.7, "other": 1.71})
    losses = figure().axes[0]
    assert not losses.texts
    assert losses.get_legend().get_window_extent().y0 >= losses.get_window_extent().y1


def test_a_run_without_any_loss_has_a_picture(tmp_path):
    plots.plot_run([], 100, "run", tmp_path / "loss.png")
    assert (tmp_path / "loss.png").stat().st_size > 1000


def test_published_levels_belong_to_the_same_text_read_by_characters():
    data = {
        "sha256": plots.TINYSHAKESPEARE_SHA256,
        "train_tokens": 1_003_854,
        "train_characters": 1_003_854,
        "validation_characters": 111_540,
    }
    assert set(plots.published_levels(data).values()) == {1.4697, 1.898}
    for change in ({"sha256": "0"}, {"train_tokens": 500_000}, {"validation_characters": 55_770}):
        assert plots.published_levels(data | change) == {}
