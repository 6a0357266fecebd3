"""The base class of all errors that a user can correct."""


class UserError(Exception):
    """A mistake in the user's input. The message says what is wrong, what is allowed and what to do.

    Commands print it in one line and exit with `exit_code`. Each subpackage has a subclass of its own.
    """

    exit_code = 2
