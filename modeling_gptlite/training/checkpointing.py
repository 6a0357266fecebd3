"""The checkpoints of a run: each is complete or absent, and a damaged one is noticed before it is loaded.

checkpoints = Checkpoints("out/quickstart")
newest = checkpoints.newest(report=print)
print(newest and checkpoints.damage(newest))

A checkpoint is written to a temporary folder together with a manifest (size and sha256 of every file), then renamed to
`checkpoint-STEP`.
"""

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout
from safetensors import SafetensorError
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from ..errors import UserError
from ..files import apply_umask, flush, sha256


MANIFEST = "manifest.json"
TEMPORARY = ".saving"
LOCK = ".lock"  # exists while a process trains in the folder, and after one was killed
_TORCH_CANNOT_WRITE = ("PytorchStreamWriter", "iostream error")  # the words of torch.save on a full disk


class CheckpointError(UserError, ValueError):
    """A checkpoint cannot be written or loaded; the message says why and what to do."""


class Checkpoints:
    """All checkpoints in one output folder."""

    def __init__(self, output_dir: str | Path):
        self.output_dir = Path(output_dir)

    # ---- Finding and checking --------------------------------------------------------------------------------------

    def folder(self, step: int) -> Path:
        """The path of the checkpoint of `step`, whether it exists or not."""
        return self.output_dir / f"{PREFIX_CHECKPOINT_DIR}-{step}"

    def all(self) -> list[Path]:
        """All checkpoints, the one of the last step first."""
        paths = self.output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        steps = {path: re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", path.name) for path in paths}
        found = {path: int(step[1]) for path, step in steps.items() if step and path.is_dir()}
        return sorted(found, key=found.__getitem__, reverse=True)

    def newest(self, report: Callable[[str], None]) -> Path | None:
        """The newest undamaged checkpoint, or None if there are no checkpoints.

        Damaged checkpoints are renamed to `damaged-checkpoint-STEP`, so that rotation does not count them.

        Args:
            report: Called with one sentence for each damaged checkpoint.

        Raises:
            CheckpointError: All checkpoints are damaged.
        """
        damaged: dict[Path, str] = {}
        for path in self.all():
            reason = self.damage(path)
            if reason is None:
                for broken, why in damaged.items():
                    report(f"{broken.name} is damaged ({why}); falling back to {path.name}")
                    shutil.rmtree(renamed := broken.with_name(f"damaged-{broken.name}"), ignore_errors=True)
                    broken.rename(renamed)
                return path
            damaged[path] = reason
        if damaged:
            reasons = "; ".join(f"{path.name}: {reason}" for path, reason in damaged.items())
            raise CheckpointError(
                f"all checkpoints in {self.output_dir} are damaged ({reasons}); delete the folder to start again"
            )
        return None

    def check_best(self, path: Path) -> None:
        """Raise `CheckpointError` if the checkpoint is damaged from which the best weights are to be loaded."""
        if reason := self.damage(path):
            raise CheckpointError(
                f"{path}, the checkpoint with the lowest validation loss, is damaged ({reason}); repeat the command "
                "with --load_best_model_at_end false to save the weights of the last step"
            )

    @staticmethod
    def damage(checkpoint: Path) -> str | None:
        """What is wrong with a checkpoint; None if it holds the files of its manifest, byte for byte, and no others."""
        try:
            files = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["files"]
            recorded = {name: (entry["size"], entry["sha256"]) for name, entry in files.items()}
        except OSError:
            return f"it has no {MANIFEST}"
        except (ValueError, KeyError, TypeError, AttributeError):
            return f"its {MANIFEST} cannot be read"
        present = {path.relative_to(checkpoint).as_posix(): path for path in _files(checkpoint)}
        for name, (size, digest) in recorded.items():
            if name not in present:
                return f"{name} is missing"
            if present[name].stat().st_size != size:
                return f"{name} has {present[name].stat().st_size:,} bytes instead of {size:,}"
            if sha256(present[name]) != digest:
                return f"the sha256 of {name} differs"
        if added := sorted(present.keys() - recorded.keys()):
            return f"{added[0]} was added"
        return None

    @staticmethod
    def recorded_run(checkpoint: Path) -> dict[str, Any]:
        """What the checkpoint's manifest says about the run that wrote it."""
        return json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["run"]

    # ---- Writing ---------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def write(
        self, step: int, run: dict[str, Any], is_main: bool = True, wait: Callable[[], None] = lambda: None
    ) -> Iterator[Path]:
        """A temporary folder to save the checkpoint of `step` in; it is sealed and renamed when the block ends.

        Args:
            run: Plain values that identify the run, for `recorded_run`.
            is_main: Whether this process seals and renames. All processes call this together.
            wait: Called where all processes must have come as far as this one.

        Raises:
            CheckpointError: The disk is full, or the folder cannot be written.
        """
        folder = self.folder(step)
        temporary = self.output_dir / TEMPORARY / folder.name
        if is_main:
            shutil.rmtree(temporary.parent, ignore_errors=True)  # of a run that was killed while it was saving
        wait()
        with self.disk_errors(folder.name):
            yield temporary
            wait()
            if is_main:
                self._seal(temporary, run)
                self._rename(temporary, folder)
                temporary.parent.rmdir()

    def rotate(self, keep: int | None, best: str | None) -> None:
        """Delete the oldest checkpoints until `keep` are left; the one at the path `best` is never deleted."""
        rotate_checkpoints(str(self.output_dir), keep, best)

    @contextlib.contextmanager
    def disk_errors(self, what: str) -> Iterator[None]:
        """Turn the exceptions of PyTorch, safetensors and Python on a full disk into a `CheckpointError`."""
        try:
            yield
        except (OSError, SafetensorError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not any(sign in str(error) for sign in _TORCH_CANNOT_WRITE):
                raise
            shutil.rmtree(self.output_dir / TEMPORARY, ignore_errors=True)
            kept = f"to resume from {self.all()[0].name}" if self.all() else "(there is no checkpoint yet)"
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CheckpointError(
                f"cannot write {what} ({reason}); free some disk space and repeat the command {kept}"
            ) from error

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from training in this folder. The system releases the lock however this process ends.

        Nested calls in one process share the lock. A folder that does not exist is not locked.

        Raises:
            CheckpointError: Another process holds the lock, or the folder cannot be written.
        """
        path = self.output_dir.resolve() / LOCK
        lock = FileLock(path, thread_local=False, is_singleton=True, fallback_to_soft=False)
        if lock.is_locked or not path.parent.is_dir():
            yield
            return
        try:
            self._acquire(lock, path)
            yield
        finally:
            if lock.is_locked:
                with contextlib.suppress(OSError):  # Windows deletes it on release
                    path.unlink()  # filelock refuses whoever has it open already, and locks a new one
                lock.release()

    # ---- Internal --------------------------------------------------------------------------------------------------

    def _seal(self, folder: Path, run: dict[str, Any]) -> None:
        """Write the manifest; when this returns, it and the files that it lists have reached the disk."""
        apply_umask(folder)
        files = {
            path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": sha256(path)}
            for path in _files(folder)
        }
        (folder / MANIFEST).write_text(json.dumps({"run": run, "files": files}, indent=2) + "\n", encoding="utf-8")
        for path in [*_files(folder), folder / MANIFEST, *filter(Path.is_dir, folder.rglob("*")), folder]:
            flush(path)

    def _rename(self, temporary: Path, folder: Path) -> None:
        """Rename a sealed checkpoint; one of the same step is deleted only after the new one has its name."""
        before = temporary.with_name(f"old-{folder.name}")
        if folder.exists():
            folder.rename(before)
        temporary.rename(folder)
        flush(folder.parent)
        shutil.rmtree(before, ignore_errors=True)

    def _acquire(self, lock: BaseFileLock, path: Path) -> None:
        try:
            lock.acquire(blocking=False)
        except Timeout as error:
            number = ""
            with contextlib.suppress(OSError):  # Windows lets only the holder read it
                number = path.read_text(encoding="utf-8")
            raise CheckpointError(
                f"another process{number and f' ({number})'} writes in {self.output_dir}; "
                "wait until it ends, stop it, or choose another --output_dir"
            ) from error
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise CheckpointError(
                    f"cannot write in {self.output_dir}: {error.strerror}; choose another --output_dir"
                ) from error
            return  # a file system without locks
        with contextlib.suppress(OSError):  # a full disk
            path.write_text(f"process {os.getpid()}", encoding="utf-8")


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
