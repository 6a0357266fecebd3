"""`runs/sizes.py`: which size of a new model suits a text and a time."""

import json

import pytest

from benchmarks.common import RESULTS
from modeling_gptlite.runs import sizes
from modeling_gptlite.runs.sizes import SIZES, choose
from modeling_gptlite.training.timing import Costs


def costs(step: float, tokens_per_step: int = 1536) -> Costs:
    return Costs(0.0, step, step, evaluation=1.0, checkpoint=0.0, tokens_per_step=tokens_per_step)


def chosen_size(tokens: int, *steps: float, tokens_per_step: int = 1536) -> dict:
    """What is chosen if the models of the table take this many steps in a minute, the smallest first."""
    measured = iter(steps)
    _, chosen = choose({"minutes": 1}, tokens, lambda _: costs(60 / next(measured), tokens_per_step))
    return chosen["model_overrides"]


@pytest.fixture
def record() -> dict:
    return json.loads((RESULTS / "budgets-avx512-amx.json").read_text(encoding="utf-8"))["results"]


@pytest.mark.parametrize("minutes", [5, 20])
def test_the_table_says_what_was_measured(minutes, record):
    models = "auto, which chose modern-1m", "6 layers of width 192", "modern-10m"
    cells = [record[f"code, {minutes} minutes, {model}"] for model in models]
    steps, losses = [cell["steps"] for cell in cells], [cell["validation_loss"] for cell in cells]
    assert [size.loss(taken) for size, taken in zip(SIZES, steps, strict=True)] == pytest.approx(losses, abs=0.002)
    best = SIZES[losses.index(min(losses))]
    assert chosen_size(18 * 10**6, *steps) == {**best.fields, "hidden_dropout": 0.0}


@pytest.mark.parametrize(("small", "large", "width"), [(3300, 1300, 128), (13_000, 5200, 192)])
def test_on_tiny_shakespeare_more_time_makes_a_larger_model(small, large, width):
    """Steps of five and of twenty minutes; on this text, the largest size was worse."""
    fields = chosen_size(1_003_854, small, large)
    assert (fields["hidden_size"], fields["hidden_dropout"]) == (width, 0.0)


def test_a_short_text_is_not_for_a_large_model_however_much_time_there_is(record):
    models = "auto", "modern-1m", "modern-10m, dropout 0.2"
    cells = {model: record[f"python-docs, 20 minutes, {model}"] for model in models}
    assert min(cells, key=lambda model: cells[model]["validation_loss"]) == "auto"
    chosen, *fixed = cells.values()
    tokens = chosen["steps"] * 1536 // 5  # passes, as it chose then
    assert chosen_size(tokens, *(cell["steps"] for cell in fixed)) == {**SIZES[0].fields, "hidden_dropout": 0.0}


@pytest.mark.parametrize(
    ("own", "windows"),
    [
        ({}, 6),
        ({"context_length": 64}, 12),
        ({"context_length": 4096}, 1),
        ({"model_overrides": '{"max_position_embeddings": 512}'}, 3),
    ],
)
def test_a_step_has_as_many_tokens_in_another_context(own, windows):
    _, chosen = choose({"minutes": 1, **own}, 10**6, lambda _: costs(0.1))
    assert chosen["per_device_train_batch_size"] == windows


@pytest.mark.parametrize("row", range(1, len(SIZES)))
def test_a_larger_model_needs_its_text(row):
    def chosen_for(tokens: int) -> dict:
        fast = [size.fields["hidden_size"] for size in SIZES[: row + 1]]

        def measure(settings):
            width = json.loads(settings["model_overrides"])["hidden_size"]
            return costs(60 / (10**6 if width in fast else 1))

        return choose({"minutes": 1}, tokens, measure)[1]["model_overrides"]

    assert chosen_for(SIZES[row].min_tokens).items() >= SIZES[row].fields.items()
    assert chosen_for(SIZES[row].min_tokens - 1).items() >= SIZES[row - 1].fields.items()


def test_larger_models_are_not_measured_in_vain():
    measured = []
    choose({"minutes": 1}, 10**9, lambda settings: measured.append(settings) or costs(60 / 900))
    assert len(measured) == 1


@pytest.mark.parametrize(
    ("row", "passes", "rate"), [(0, 6.1, 0.0), (0, 31, 0.2), (1, 31, 0.0), (2, 1.9, 0.0), (2, 2.6, 0.1), (2, 5.6, 0.2)]
)
def test_dropout_grows_with_the_passes_over_the_text(row, passes, rate, monkeypatch):
    monkeypatch.setattr(sizes, "SIZES", (SIZES[row],))
    monkeypatch.setattr(sizes, "choose_teachers", lambda *_: {})
    tokens = 3 * 10**6
    for tokens_per_step in (SIZES[row].tokens_per_step, 384):
        steps = passes * tokens / tokens_per_step
        assert chosen_size(tokens, steps, tokens_per_step=tokens_per_step)["hidden_dropout"] == rate


def test_a_very_short_text_is_still_learned():
    assert SIZES[0].most_steps(tokens=1000, tokens_per_step=1536) == sizes.LEAST_STEPS


@pytest.mark.parametrize(("tokens", "context"), [(100, 32), (150, 64), (400, 128), (100_000, 256)])
def test_the_context_of_a_new_model_fits_into_a_short_text(tokens, context):
    _, chosen = choose({"minutes": 1.0}, tokens, lambda _: costs(0.01))
    assert chosen["model_overrides"]["max_position_embeddings"] == context
    assert ("short_context" in chosen) == (context > 64)
