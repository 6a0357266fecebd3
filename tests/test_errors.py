"""Rules for the user's settings, and the nearest name to a misspelt one."""

from types import SimpleNamespace

import pytest
from transformers import SchedulerType

from modeling_gptlite.errors import UserError, check, did_you_mean


class OurError(UserError, ValueError):
    pass


def test_the_first_rule_that_does_not_hold_is_an_error_with_name_value_and_what_is_allowed():
    settings = SimpleNamespace(steps=3, rate=-1.0, scheduler=SchedulerType.LINEAR)
    check(settings, [("steps", True, "at least 1")])
    with pytest.raises(OurError, match=r"^--rate must be at least 0, got -1\.0$"):
        check(settings, [("steps", True, ""), ("rate", False, "at least 0"), ("scheduler", False, "")], OurError)
    with pytest.raises(UserError, match=r"got linear$"):
        check(settings, [("scheduler", False, "cosine")])


def test_the_nearest_name_is_suggested_if_one_is_near():
    assert did_you_mean("max_step", {"max_steps": 1, "seed": 2}) == "; did you mean 'max_steps'?"
    assert did_you_mean("xyz", ["max_steps", "seed"]) == ""
