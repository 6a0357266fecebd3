"""Run the fuzz tests with new random examples for some minutes, and print a summary.

    python -m benchmarks.fuzz --minutes 10

Each round runs `tests/test_fuzz_*.py` with another seed. If a test fails, pytest's report is printed, in which
hypothesis shows the smallest example that it found, and the exit code is 1.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path


ROOT = Path(__file__).parent.parent


def run_round(seed: int, examples: int) -> tuple[int, int, str]:
    """Run every fuzz test once; returns how many passed and failed, and pytest's output."""
    files = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests").glob("test_fuzz_*.py"))
    command = [sys.executable, "-m", "pytest", "--timeout=0", f"--hypothesis-seed={seed}", *files]
    environment = os.environ | {"FUZZ_EXAMPLES": str(examples)}
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|error)", process.stdout)}
    failed = counts.get("failed", 0) + counts.get("error", 0)
    return counts.get("passed", 0), max(failed, int(process.returncode != 0)), process.stdout


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="no round starts later than this")
    parser.add_argument("--examples", type=int, default=100, help="of each test in each round")
    parser.add_argument("--seed", type=int, default=0, help="of the first round; every round adds 1")
    options = parser.parse_args(argv)
    start, rounds, tests, failures = time.monotonic(), 0, 0, 0
    while rounds == 0 or time.monotonic() - start < 60 * options.minutes:
        passed, failed, printed = run_round(options.seed + rounds, options.examples)
        rounds, tests, failures = rounds + 1, tests + passed + failed, failures + failed
        if failed:
            print(printed, flush=True)
    minutes = (time.monotonic() - start) / 60
    print(
        f"{minutes:.1f} minutes, {rounds} rounds from seed {options.seed}: "
        f"{tests} tests of {options.examples} examples, {failures} failed"
    )
    raise SystemExit(failures > 0)


if __name__ == "__main__":
    main()
