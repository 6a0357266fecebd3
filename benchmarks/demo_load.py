"""64 visitors use the demo page at the same time: does each get the text of its seed, and does memory stay bounded?

    python -m benchmarks.demo_load --model out/quickstart

The demo runs in a separate process and receives requests over HTTP (`pip install "gptlite[demo]"`). Every round has two
more visitors: one reads its text slowly, one disconnects while its text is written. Each complete text is compared with
the one that an idle demo gives for the same seed.
"""

import argparse
import json
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks import common


PROMPT = "\n"  # which every vocabulary has
SECONDS_TO_START = 120
SLOW_READ, SLOW_PAUSE = 512, 0.02  # bytes, seconds


def resident_megabytes(process: int) -> float:
    with open(f"/proc/{process}/status", encoding="ascii") as status:
        return int(re.search(r"VmRSS:\s+(\d+)", status.read())[1]) / 1024


def open_stream(url: str, seed: int, tokens: int):
    """Ask for a text; returns the response, in which its versions arrive as server-sent events."""
    data = json.dumps({"data": [PROMPT, 0.8, 0, 1, tokens, 1, seed, True]}).encode()
    request = urllib.request.Request(f"{url}/gradio_api/call/write", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=SECONDS_TO_START) as response:
        event = json.load(response)["event_id"]
    return urllib.request.urlopen(f"{url}/gradio_api/call/write/{event}", timeout=600)


def ask(url: str, seed: int, tokens: int, slowly: bool = False) -> str:
    """The text of a seed, as HTML."""
    with open_stream(url, seed, tokens) as response:
        content = b"".join(read_slowly(response)) if slowly else response.read()
    name, data = re.findall(r"event: (\w+)\ndata: (.*)", content.decode())[-1]
    if name != "complete":
        raise RuntimeError(f"the demo answered {name}: {data}")
    return json.loads(data)[0]


def read_slowly(response) -> Iterator[bytes]:
    while part := response.read(SLOW_READ):
        time.sleep(SLOW_PAUSE)
        yield part


def leave(url: str, tokens: int) -> None:
    """Ask for a text and disconnect when its first part has arrived."""
    with open_stream(url, 0, tokens) as response:
        response.readline()


def serve(model: str, port: int) -> subprocess.Popen:
    command = [sys.executable, "-m", "scripts.demo", "--model", model, "--port", str(port)]
    return subprocess.Popen(command, cwd=common.ROOT, stdout=subprocess.DEVNULL)


def wait_until_ready(url: str, page: subprocess.Popen) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            if page.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def one_round(url: str, expected: dict[int, str], tokens: int) -> float:
    """All visitors at once; returns the seconds until the last complete text.

    Raises:
        SystemExit: A visitor got another text than that of its seed.
    """
    slow = next(iter(expected))
    together = threading.Barrier(len(expected) + 2)

    def visit(seed: int, slowly: bool = False) -> tuple[str, float]:
        together.wait()
        began = time.perf_counter()
        return ask(url, seed, tokens, slowly), time.perf_counter() - began

    def visit_and_leave() -> None:
        together.wait()
        leave(url, tokens)

    with ThreadPoolExecutor(len(expected) + 2) as pool:
        answers = {seed: pool.submit(visit, seed) for seed in expected}
        slow_answer, left = pool.submit(visit, slow, True), pool.submit(visit_and_leave)
    left.result()
    wrong = [seed for seed, answer in answers.items() if answer.result()[0] != expected[seed]]
    if wrong or slow_answer.result()[0] != expected[slow]:
        raise SystemExit(f"{len(wrong)} visitors got a text other than that of an idle demo: seeds {wrong[:8]}")
    return max(answer.result()[1] for answer in answers.values())


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def main(argv: list[str] | None = None, results: Path = common.RESULTS):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub name of the model")
    parser.add_argument("--clients", type=int, default=64, help="number of simultaneous visitors")
    parser.add_argument("--rounds", type=int, default=3, help="requests of each visitor")
    parser.add_argument("--tokens", type=int, default=50, help="tokens per text")
    options = parser.parse_args(argv)

    port = free_port()
    url, page = f"http://127.0.0.1:{port}", serve(options.model, port)
    try:
        wait_until_ready(url, page)
        expected = {seed: ask(url, seed, options.tokens) for seed in range(options.clients)}
        megabytes, seconds = [resident_megabytes(page.pid)], []
        for _ in range(options.rounds):
            seconds.append(one_round(url, expected, options.tokens))
            megabytes.append(resident_megabytes(page.pid))
            print(f"{options.clients} correct texts in {seconds[-1]:.1f} s, {megabytes[-1]:.0f} MB", flush=True)
    finally:
        page.terminate()
        page.wait()
    common.record(
        "demo_load",
        "simultaneous visitors of the demo, one that reads slowly and one that disconnects: every text was that of "
        "its seed; seconds per round, resident MB after it",
        results,
        clients=options.clients,
        tokens=options.tokens,
        seconds=seconds,
        resident_megabytes=megabytes,
    )


if __name__ == "__main__":
    main()
