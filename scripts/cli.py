"""How every command starts and ends: exit codes, errors in one line, text that is safe to print.

Only the standard library is imported here, so that Ctrl-C during the slow imports is one line, too.
"""

import atexit
import contextlib
import gc
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn


INTERRUPTED = 130  # what a shell reports after SIGINT


def run(main: Callable[[], None]) -> None:
    """Run a command. The one place where exceptions become exit codes.

    0: done. 1: a failure of ours or of the machine. 2: a mistake of the user (`UserError`). 130: Ctrl-C. Each but the
    first prints one line on standard error; `--traceback` anywhere in the command line adds the traceback.
    """
    after_imports()
    atexit.register(gc.freeze)  # or Python searches everything for garbage before it exits, which takes a second
    if sys.stdout is None:
        fail("standard output is closed; redirect it to a file, or to /dev/null")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(
            stream, io.TextIOWrapper
        ):  # text of users and models, on a terminal or in a file of code page 1252
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            main()
        finally:
            sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        raise SystemExit(_report(error)) from None


def before_imports() -> None:
    """Until `after_imports`, Ctrl-C exits at once, without the traceback of an import, and no garbage is collected.

    An exception would not do: a KeyboardInterrupt inside `exec` (imports define dataclasses with it) makes Python end
    as if killed by the signal, even if the exception is caught.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not if the caller ignores the signal
        signal.signal(signal.SIGINT, _exit_now)
    gc.disable()


def after_imports() -> None:
    if signal.getsignal(signal.SIGINT) is _exit_now:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.enable()


def _exit_now(*_) -> NoReturn:
    tell("interrupted")
    os._exit(INTERRUPTED)


def _report(error: BaseException) -> int:
    """Print what a person needs to know about `error`; return the exit code."""
    _discard_output_if_it_fails()
    if isinstance(error, BrokenPipeError):  # `... | head`
        return 0
    if "--traceback" in sys.argv:
        traceback.print_exception(error)
    if isinstance(error, KeyboardInterrupt):
        tell("interrupted")
        return INTERRUPTED
    message, exit_code = " ".join(str(error).split()), getattr(error, "exit_code", None)
    if exit_code is None:
        name = "" if isinstance(error, OSError) else f"{type(error).__name__}: "
        message, exit_code = f"{name}{message} (unexpected; --traceback shows where)", 1
    tell(f"error: {message}")
    return exit_code


def _discard_output_if_it_fails() -> None:
    """Flush standard output. If that fails, discard what is left, or Python would try again at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def tell(line: str) -> None:
    """Print a line on standard error, if it can be written to."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            print(printable(line), file=sys.stderr, flush=True)


def fail(message: str) -> NoReturn:
    """Exit with code 2 and one line, before `UserError` is imported."""
    tell(f"error: {message}")
    raise SystemExit(2)


def printable(text: str) -> str:
    """`text` with everything that could control a terminal (escapes, bidirectional overrides) as visible escapes."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def shown(text: str) -> str:
    """Generated text for standard output: `printable` on a terminal, unchanged into a file or pipe."""
    return printable(text) if sys.stdout.isatty() else text
