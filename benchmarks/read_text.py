"""How often a training run reads its text: bytes read over size, seconds and peak memory, fresh and on cached ids.

python -m benchmarks.read_text --size 300

A text of `--size` MB is generated as one file, as a folder of four files, and as a data set that is streamed. A run of
one step with a tiny model reads each of them twice: the first run encodes the text, the second finds its ids in the
cache. The bytes are those that the process reads in system calls (`rchar` in `/proc/self/io`), less those of the same
run on 1 MB of text: what its imports read. Linux only. The seconds are those of the whole process.

`--code` measures another checkout of this repository. The result is written to `benchmarks/results/read_text.json`, for
another checkout to `read_text_NAME.json`.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import common


MEGABYTE = 1_000_000
OVERRIDES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 16}
FLAGS = [
    "--preset=modern-1m",
    f"--model_overrides={json.dumps(OVERRIDES)}",
    "--max_steps=1",
    "--per_device_train_batch_size=1",
    "--eval_strategy=no",
    "--save_strategy=no",
    "--load_best_model_at_end=false",
    "--eval_sample_length=0",
    "--sample_length=0",
    "--validation_fraction=0.0001",
    "--precision=fp32",
]
RUN = """
import json, re, resource, sys
from pathlib import Path
from scripts import train

train.main(sys.argv[1:])
read = int(re.search(r"rchar: (\\d+)", Path("/proc/self/io").read_text())[1])
print(json.dumps({"bytes": read, "peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
"""


def lines(size: int):
    """Lines of English words and numbers, `size` bytes in all."""
    number = written = 0
    while written < size:
        line = f"{number} green bottles standing on the wall, and if one should fall: {number * 7919 % 10007}!\n"
        yield line
        number, written = number + 1, written + len(line)


def batches(items, count: int):
    """`itertools.batched`, which Python has from 3.12 on."""
    items = iter(items)
    while batch := list(itertools.islice(items, count)):
        yield batch


def write_file(folder: Path, size: int) -> list[str]:
    with open(folder / "text.txt", "w", encoding="utf-8") as file:
        file.writelines(lines(size))
    return [f"--train_file={folder / 'text.txt'}"]


def write_folder(folder: Path, size: int) -> list[str]:
    for part in range(4):
        with open(folder / f"{part}.txt", "w", encoding="utf-8") as file:
            file.writelines(lines(size // 4))
    return [f"--train_file={folder}"]


def write_rows(folder: Path, size: int) -> list[str]:
    with open(folder / "train.jsonl", "w", encoding="utf-8") as file:
        for document in batches(lines(size), 100):
            file.write(json.dumps({"text": "".join(document)}) + "\n")
    return [f"--dataset={folder}", "--streaming=true"]


KINDS = {"file": write_file, "folder": write_folder, "streamed rows": write_rows}


def run(code: Path, flags: list[str], work: Path) -> dict[str, float]:
    """One training run in a new process."""
    caches = {"GPTLITE_CACHE": str(work / "cache"), "HF_DATASETS_CACHE": str(work / "datasets"), "HF_HUB_OFFLINE": "1"}
    output = tempfile.mkdtemp(dir=work)
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", RUN, *FLAGS, f"--output_dir={output}", *flags],
        cwd=code,
        env=os.environ | caches | {"PYTHONPATH": str(code)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return {"seconds": time.perf_counter() - began, **json.loads(done.stdout.splitlines()[-1])}


def measure(code: Path, kind: str, size: int) -> dict[str, dict[str, float]]:
    """The figures of a fresh run and of one on cached ids."""
    figures = {}
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        for name in ("small", "large"):
            (work / name).mkdir()
        small, large = KINDS[kind](work / "small", MEGABYTE), KINDS[kind](work / "large", size)
        sizes = {name: sum(path.stat().st_size for path in (work / name).iterdir()) for name in ("small", "large")}
        for state in ("fresh", "cached"):
            imports, whole = run(code, small, work), run(code, large, work)
            # The small text is read as often as the large one, so the difference counts whole readings.
            read = (whole["bytes"] - imports["bytes"]) / (sizes["large"] - sizes["small"])
            figures[state] = {"times_read": round(read, 3), **whole}
            print(f"{kind}, {state}: read {read:.2f} times, {whole['peak_megabytes']:,.0f} MB", flush=True)
    return figures


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1000, help="megabytes of text")
    parser.add_argument("--code", type=Path, default=common.ROOT, help="the checkout to measure")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS, help="what the text is written as")
    parser.add_argument("--results", type=Path, default=common.RESULTS, help="folder of the record")
    options = parser.parse_args(argv)
    results = {kind: measure(options.code.resolve(), kind, options.size * MEGABYTE) for kind in options.kinds}
    name = "read_text" if options.code == common.ROOT else f"read_text_{options.code.resolve().name}"
    measured = subprocess.run(["git", "rev-parse", "HEAD"], cwd=options.code, capture_output=True, text=True)
    what = f"reading {options.size} MB of text in a training run of one step"
    common.record(name, what, options.results, measured_commit=measured.stdout.strip(), results=results)


if __name__ == "__main__":
    main()
