"""`runs/steps.py`: how many steps fit into the minutes of a run."""

import pytest

from modeling_gptlite.runs.steps import fit
from modeling_gptlite.training.arguments import ArgumentError
from modeling_gptlite.training.timing import Costs


pytestmark = pytest.mark.usefixtures("small_reserve")
COSTS = Costs(start=1.0, step=0.1, short_step=0.1, evaluation=2.0, checkpoint=1.0, finish=0.75, tokens_per_step=1536)


def fitted(minutes=1.0, costs=COSTS, **given):
    return fit(costs, {"minutes": minutes, **given})


def test_steps_evaluations_and_checkpoints_fill_the_time():
    # 57 seconds remain after the reserve and the first step; 3 evaluations take 9 of them, at most a fifth
    assert fitted() == {"max_steps": 480, "warmup_steps": 24, "eval_steps": 160, "save_steps": 160}


def test_a_long_run_has_the_usual_warm_up_and_ten_evaluations():
    settings = fitted(minutes=60)
    assert settings["warmup_steps"] == 100
    assert settings["max_steps"] == 34_962
    assert settings["eval_steps"] == 3_497


def test_short_windows_are_counted_with_their_own_time():
    costs = Costs(start=1.75, step=0.1, short_step=0.05, evaluation=2.0, checkpoint=1.0)
    assert fitted(costs=costs, short_context=64, short_context_fraction=0.5)["max_steps"] == 640
    assert fitted(costs=costs)["max_steps"] == 480


def test_an_evaluation_that_takes_too_much_of_the_time_is_left_out():
    settings = fitted(costs=Costs(start=1.75, step=0.1, short_step=0.1, evaluation=44.0, checkpoint=1.0))
    assert settings["max_steps"] == 550
    assert settings["eval_delay"] > settings["max_steps"]
    assert settings["save_steps"] == 275


def test_given_intervals_and_warm_up_are_kept():
    settings = fitted(eval_steps=100, save_steps=200, warmup_steps=7)
    assert settings == {"max_steps": 440}  # 44 seconds, and 13 for 5 evaluations and 3 checkpoints


@pytest.mark.parametrize(
    ("given", "steps"),
    [
        ({"eval_strategy": "no", "load_best_model_at_end": False, "save_strategy": "no"}, 570),
        ({"eval_strategy": "epoch", "save_strategy": "epoch"}, 540),
        ({"eval_strategy": "epoch", "save_strategy": "best"}, 540),
        ({"eval_steps": 0.1, "save_steps": 0.5}, 350),
    ],
)
def test_every_strategy_is_counted(given, steps):
    assert fitted(**given)["max_steps"] == steps


def test_what_has_passed_before_is_part_of_the_minutes():
    assert fit(COSTS, {"minutes": 1.0}, elapsed=10.0)["max_steps"] == fitted()["max_steps"] - 100


def test_a_part_of_the_time_is_kept_in_reserve(monkeypatch):
    given = {"eval_strategy": "no", "load_best_model_at_end": False, "save_strategy": "no"}
    monkeypatch.setattr("modeling_gptlite.runs.steps.RESERVE", 0.5)
    assert fitted(**given)["max_steps"] == 282  # 30 seconds, less 1.75 before the first step and after the last


def test_a_time_too_short_for_one_step_is_refused():
    with pytest.raises(ArgumentError, match=r"--minutes 0\.05 is too short"):
        fitted(minutes=0.05)
