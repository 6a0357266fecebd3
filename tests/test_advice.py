"""`runs/advice.py`: one sentence on what would help, from constructed logs."""

import pytest

from modeling_gptlite.runs.advice import advise


def log(validation, training):
    """The Trainer's log of a run with an evaluation every 10 steps, each after a row of its training loss."""
    rows = []
    for index, (loss, seen) in enumerate(zip(validation, training, strict=True), start=1):
        rows += [{"step": 10 * index, "loss": seen}, {"step": 10 * index, "eval_loss": loss}]
    return [*rows, {"step": 10 * len(validation), "train_runtime": 1.0}]


@pytest.mark.parametrize(
    ("validation", "training", "told"),
    [
        ([2.0, 1.6, 1.5, 1.62], [1.9, 1.5, 1.3, 1.0], "rose by 0.12 after step 30, which is overfitting: more text"),
        ([2.0, 1.8, 1.7, 1.6], [2.0, 1.8, 1.7, 1.6], "still fell at the end: more time would help"),
        ([2.0, 1.6, 1.504, 1.5], [1.9, 1.4, 1.2, 1.1], "is 0.40 above the training loss: more text or dropout"),
        ([2.0, 1.6, 1.504, 1.5], [2.0, 1.6, 1.5, 1.5], "close to the training loss: a larger model would help"),
    ],
)
def test_the_advice_follows_from_the_losses(validation, training, told):
    assert told in advise(log(validation, training))


def test_a_run_that_ended_with_its_text_is_not_told_to_take_more_time():
    assert advise(log([2.0, 1.8, 1.7, 1.6], [2.0, 1.8, 1.7, 1.6]), is_limited_by_text=True).endswith(
        "so little text is memorized: more text would help"
    )


@pytest.mark.parametrize("training", [[1.9, 1.4, 1.2, 1.1], [2.0, 1.6, 1.5, 1.5]])
def test_a_run_with_teachers_is_not_compared_with_its_training_loss(training):
    told = advise(log([2.0, 1.6, 1.504, 1.5], training), has_teachers=True)
    assert told == "the validation loss no longer falls"


def test_a_difference_that_is_small_is_no_rise():
    assert "overfitting" not in advise(log([2.0, 1.5, 1.5, 1.505], [2.0, 1.5, 1.5, 1.5]))


def test_a_fall_before_the_last_quarter_is_no_reason_for_more_time():
    assert "more time" not in advise(log([2.5, 2.0, 1.5, 1.5, 1.5, 1.5], [1.5] * 6))


@pytest.mark.parametrize("evaluations", [0, 1, 2])
def test_two_evaluations_are_too_few(evaluations):
    assert advise(log([2.0, 1.5][:evaluations], [2.0, 1.5][:evaluations])) is None
