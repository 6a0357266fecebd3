"""Errors that a user can correct, how they are found and worded; and the settings in which they are made."""

import difflib
from collections.abc import Iterable
from dataclasses import MISSING, field
from typing import Any


class UserError(Exception):
    """A mistake in the user's input. The message says what is wrong, what is allowed and what to do.

    Commands print it in one line and exit with `exit_code`. Each subpackage has a subclass of its own.
    """

    exit_code = 2


def setting(default: Any = MISSING, help: str = "", **metadata: Any) -> Any:
    """A field of a class of settings, which is a flag of the same name.

    Args:
        default: MISSING: it must be given.
        help: The text of the flag.
        metadata: More that `HfArgumentParser` knows, such as `choices` and `aliases`.
    """
    metadata["help"] = help
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def check(settings: Any, rules: Iterable[tuple[str, bool, str]], error: type[UserError] = UserError) -> None:
    """Raise `error` for the first rule that does not hold.

    Args:
        settings: The object whose attributes are checked; each is a flag of the same name.
        rules: Name of the attribute, whether its value is allowed, and which values are.
    """
    for name, is_allowed, allowed in rules:
        if not is_allowed:
            value = getattr(settings, name)
            raise error(f"--{name} must be {allowed}, got {getattr(value, 'value', value)}")  # an Enum's


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'NAME'?` with the nearest of the known names, to end an error message; empty if none is near."""
    nearest = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""
