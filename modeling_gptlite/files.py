"""Files and folders that are complete or absent, their hashes and permissions, and the folder of the cache.

with written(Path("out/results.json")) as partial:
    partial.write_text("{}")
"""

import contextlib
import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import UserError


class UserPath(str):
    """The type of a flag or setting that may be a path; calling it gives the path as text, with `~` expanded.

    A shell expands `~` neither in `--flag=~/x` nor in quotes, and a recipe knows no shell.
    """

    def __new__(cls, path: str) -> Any:
        return os.path.expanduser(path)


def cache_dir() -> Path:
    """Where downloads and packed ids are stored: `$GPTLITE_CACHE`, else `~/.cache/gptlite`.

    Raises:
        UserError: There is no home folder, as in a container that runs under a user id without a name.
    """
    folder = UserPath(os.environ.get("GPTLITE_CACHE") or "~/.cache/gptlite")
    if folder.startswith("~"):
        raise UserError("there is no home folder for the cache; set GPTLITE_CACHE to a folder that you can write in")
    return Path(folder)


def sha256(path: str | os.PathLike) -> str:
    """The sha256 of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_readable(path: Path, error: type[UserError] = UserError) -> None:
    """Raise `error` if this user may not read `path`."""
    if not os.access(path, os.R_OK):
        raise error(f"no permission to read {path}")


@contextlib.contextmanager
def written(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, to write a file to. It is renamed when the block ends, and removed if it fails.

    The folder is created if it does not exist. Other processes and threads may write the same file: the last one wins.
    After a loss of power, the file is the old one or the new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        yield partial
        flush(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Return when a file or folder is on the disk, and no longer only in memory."""
    if os.name == "nt" and path.is_dir():
        return  # Windows does not open folders
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def new_folder(path: str | os.PathLike, error: type[UserError] = UserError) -> Iterator[Path]:
    """A temporary folder near `path`, to write into. It is renamed when the block ends, and removed if it fails.

    Raises:
        error: `path` is a file, or a folder that is not empty; or it cannot be written.
    """
    target = Path(os.path.abspath(path))
    if target.exists() and (target.is_file() or any(target.iterdir())):
        raise error(f"{os.fspath(path)} exists already; name a new folder, or delete it first")
    nearest = next(parent for parent in target.parents if parent.exists())
    try:
        with tempfile.TemporaryDirectory(dir=nearest, prefix=f".{target.name}-") as temporary:
            folder = Path(temporary) / target.name
            folder.mkdir()
            yield folder
            apply_umask(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            folder.replace(target)
    except OSError as cause:
        raise error(f"cannot write {os.fspath(path)}: {cause.strerror or cause}") from cause


def apply_umask(folder: Path) -> None:
    """Give the weights in a saved model's folder the permissions of the configuration beside them.

    safetensors writes files that only their owner may read, whatever the umask
    (https://github.com/huggingface/safetensors/issues/782).
    """
    config = next(folder.glob("*config.json"), folder)
    for weights in folder.glob("*.safetensors") if config.is_file() else ():
        with contextlib.suppress(PermissionError):  # a file system without permissions
            shutil.copymode(config, weights)
