"""Checkpoints that are whole or not there: written aside, sealed with a manifest of their files, then renamed.

checkpoint = newest_whole(Path("out/quickstart"), on_damage=print)
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR


MANIFEST = "manifest.json"
ASIDE = ".saving"  # where a checkpoint is written before it gets its name
_TORCH_CANNOT_WRITE = ("PytorchStreamWriter", "iostream error")  # what torch.save says of a full disk


class CheckpointError(ValueError):
    """A checkpoint cannot be written or gone on from; the message says why and what to do."""


def all_checkpoints(output_dir: Path) -> list[Path]:
    """The checkpoints of a run, the one of the last step first."""
    steps = {path: re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", path.name) for path in output_dir.glob("*-*")}
    found = [path for path, step in steps.items() if step and path.is_dir()]
    return sorted(found, key=lambda path: int(steps[path][1]), reverse=True)


def newest_whole(output_dir: Path, on_damage: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that is what was written, or None where there is no checkpoint at all.

    A damaged one is renamed to `damaged-checkpoint-N`, so that rotation neither counts it nor keeps it for a whole one.

    Args:
        on_damage: Is told of each damaged checkpoint in one sentence.

    Raises:
        CheckpointError: there are checkpoints, and none is whole.
    """
    damaged = {}
    for path in all_checkpoints(output_dir):
        reason = damage(path)
        if reason is None:
            for broken, why in damaged.items():
                on_damage(f"{broken.name} is damaged ({why}); going on from {path.name}")
                shutil.rmtree(aside := broken.with_name(f"damaged-{broken.name}"), ignore_errors=True)
                broken.rename(aside)
            return path
        damaged[path] = reason
    if damaged:
        reasons = "; ".join(f"{path.name}: {reason}" for path, reason in damaged.items())
        raise CheckpointError(f"no checkpoint in {output_dir} is whole ({reasons}); delete the folder to start again")
    return None


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or None if every file is there and is, byte for byte, what was written."""
    try:
        files = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["files"]
        recorded = {name: (entry["size"], entry["sha256"]) for name, entry in files.items()}
    except OSError:
        return f"it has no {MANIFEST}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"its {MANIFEST} cannot be read"
    there = {path.relative_to(checkpoint).as_posix(): path for path in _files(checkpoint)}
    for name, (size, sha256) in recorded.items():
        if name not in there:
            return f"{name} is missing"
        if there[name].stat().st_size != size:
            return f"{name} has {there[name].stat().st_size:,} bytes instead of {size:,}"
        if _sha256(there[name]) != sha256:
            return f"the sha256 of {name} differs"
    if added := sorted(there.keys() - recorded.keys()):
        return f"{added[0]} was added"
    return None


def recorded_run(checkpoint: Path) -> dict[str, Any]:
    """What the checkpoint's manifest says of the run that wrote it."""
    return json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["run"]


def seal(folder: Path, run: dict[str, Any]) -> None:
    """Write the manifest of a checkpoint; when this returns, it and all that it lists are on the disk.

    Args:
        run: Plain values that say which run this is, for `recorded_run`.
    """
    files = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": _sha256(path)}
        for path in _files(folder)
    }
    (folder / MANIFEST).write_text(json.dumps({"run": run, "files": files}, indent=2) + "\n", encoding="utf-8")
    for path in [*_files(folder), folder / MANIFEST, *(path for path in folder.rglob("*") if path.is_dir()), folder]:
        _flush(path)


def put_in_place(aside: Path, folder: Path) -> None:
    """Rename a sealed checkpoint to its name; one that bears it already goes only when the new one is there."""
    before = aside.with_name(f"old-{folder.name}")
    if folder.exists():
        folder.rename(before)
    aside.rename(folder)
    _flush(folder.parent)
    shutil.rmtree(before, ignore_errors=True)


@contextlib.contextmanager
def writing(what: str, output_dir: Path):
    """Turn what a full disk makes PyTorch, safetensors and Python raise into a `CheckpointError`."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(sign in str(error) for sign in _TORCH_CANNOT_WRITE):
            raise
        shutil.rmtree(output_dir / ASIDE, ignore_errors=True)
        whole = [path.name for path in all_checkpoints(output_dir)]
        kept = f"{whole[0]} is whole, the same command goes on from it" if whole else "there is no checkpoint yet"
        told = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"cannot write {what} ({told}); make room on the disk: {kept}") from error


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
