"""Many generated texts: prompts from a file, and records in a file that an interrupted command continues.

records = generate_texts(model, tokenizer, ["ROMEO:", "JULIET:"], GenerationSettings(), count=2, seed=1)
append(Path("out/texts.jsonl"), 0, 4, records)
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import set_seed

from ..data.files import read_text
from ..errors import UserError
from ..files import written
from .generate import GenerationSettings, read_prompt, samples


SEEDS = 1 << 32


def read_prompts(path: str) -> list[str]:
    """The prompts in a file: one per line, or in the field `prompt` of each object of a `.jsonl` file.

    Raises:
        UserError: The file cannot be read, or has no prompt, or a line has none.
    """
    try:
        lines = "".join(read_text(path)).split("\n")
    except OSError as error:
        raise UserError(f"cannot read the prompts from {path}: {error.strerror}") from error
    numbered = [(number, line.rstrip("\r")) for number, line in enumerate(lines, 1) if line.strip()]
    if _is_jsonl(path):
        prompts = [_prompt_of(line, f"{path}, line {number}") for number, line in numbered]
    else:
        prompts = [line for _, line in numbered]
    if not prompts:
        raise UserError(f"{path} has no prompts; write one per line")
    return prompts


def _is_jsonl(path: str | os.PathLike) -> bool:
    return os.fspath(path).lower().endswith(".jsonl")


def _prompt_of(line: str, place: str) -> str:
    try:
        prompt = json.loads(line)["prompt"]
    except (ValueError, LookupError, TypeError):
        prompt = None
    if not isinstance(prompt, str):
        raise UserError(f'{place} must be a JSON object with a prompt: {{"prompt": "..."}}')
    return prompt


def check_prompts(model, tokenizer, prompts: Sequence[str]) -> None:
    """Raise `UserError` for the first prompt that the model cannot read."""
    for number, prompt in enumerate(prompts, 1):
        try:
            read_prompt(model, tokenizer, prompt)
        except UserError as error:
            place = f" (prompt {number} of {len(prompts)})" if len(prompts) > 1 else ""
            raise UserError(f"{error}{place}") from None


def generate_texts(
    model, tokenizer, prompts: Sequence[str], settings: GenerationSettings, count: int, seed: int, done: int = 0
) -> Iterator[dict[str, Any]]:
    """Records of `count` texts for each prompt: prompt, sample (from 1), seed and text.

    Prompt i has the seed plus i, so that the texts of each prompt can be repeated without the others.

    Args:
        done: Records at the beginning that are left out.
    """
    for index, prompt in enumerate(prompts[done // count :], done // count):
        own_seed = (seed + index) % SEEDS
        set_seed(own_seed)
        for sample, text in enumerate(samples(model, tokenizer, prompt, settings, count), 1):
            if index * count + sample > done:
                yield {"prompt": prompt, "sample": sample, "seed": own_seed, "text": text}


def page(number: int, total: int, text: str) -> str:
    """A text as it is printed: with a heading if there are several."""
    return f"{text}\n" if total == 1 else f"{'' if number == 1 else chr(10)}--- {number} of {total} ---\n{text}\n"


# ---- The file ------------------------------------------------------------------------------------------------------


def _progress(path: Path) -> Path:
    """The file of records: `path` itself, or for a text file one beside it until all texts are there."""
    return path if _is_jsonl(path) else path.with_name(f"{path.name}.partial.jsonl")


def find_done(
    path: Path, prompts: Sequence[str], count: int, seed: int | None, settings: Mapping[str, Any]
) -> tuple[int, int | None]:
    """How many texts an interrupted command has written to `path`, and the seed that it began with.

    Raises:
        UserError: The file was written with other prompts or settings, or by another program, or cannot be read.
    """
    if path != _progress(path) and path.exists():
        raise UserError(f"{path} exists already; name a new file, or delete it first")
    records = _complete_records(_progress(path))
    if not records:
        return 0, seed
    if seed is None:
        seed = records[0]["seed"]
    advice = f"name another --output, or delete {_progress(path)}"
    for number, record in enumerate(records):
        if number >= len(prompts) * count or record["prompt"] != prompts[number // count]:
            raise UserError(f"text {number + 1} in {_progress(path)} has another prompt; {advice}")
        expected = {**settings, "seed": (seed + number // count) % SEEDS}
        held = {**record["settings"], "seed": record["seed"]}
        for name in expected:
            if held.get(name) != expected[name]:
                now = f"{held.get(name)!r}, not {expected[name]!r}"
                raise UserError(f"{_progress(path)} was written with {name} {now}; {advice}")
    return len(records), seed


def _complete_records(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last line break is not complete
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    try:
        records = [json.loads(line) for line in lines]
        if all(isinstance(record["settings"], dict) and isinstance(record["seed"], int) for record in records):
            return records
    except (ValueError, LookupError, TypeError):
        pass
    raise UserError(f"{path} holds no generated texts; name another --output, or delete it")


def append(
    path: Path, done: int, total: int, records: Iterable[dict[str, Any]], settings: Mapping[str, Any] | None = None
) -> None:
    """Write records to a file, after the `done` that are there; a line that was cut off is removed.

    A file that does not end in `.jsonl` gets the texts as they would be printed, once all are there.

    Raises:
        UserError: The file cannot be written.
    """
    progress = _progress(path)
    try:
        progress.parent.mkdir(parents=True, exist_ok=True)
        with open(progress, "a+b") as file:
            file.seek(0)
            file.truncate(sum(len(file.readline()) for _ in range(done)))
            for record in records:
                file.write(json.dumps({**record, "settings": settings or {}}, ensure_ascii=False).encode() + b"\n")
                file.flush()
        if progress != path:
            texts = [record["text"] for record in _complete_records(progress)]
            with written(path) as partial:
                pages = (page(number, total, text) for number, text in enumerate(texts, 1))
                partial.write_text("".join(pages), encoding="utf-8", newline="")
            progress.unlink()
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
