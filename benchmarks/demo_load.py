"""Sixty-four people at the demo at once: does each get the text of their own seed, and does memory stay bounded?

    python -m benchmarks.demo_load --model out/quickstart

The page runs in a process of its own and is asked over HTTP by Gradio's client (`pip install 'gptlite[demo]'`). Every
client asks several times; what it gets is compared with the text that a quiet page gives for the same seed.
"""

import argparse
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from benchmarks import common


def resident_megabytes(process: int) -> float:
    with open(f"/proc/{process}/status", encoding="ascii") as status:
        return int(re.search(r"VmRSS:\s+(\d+)", status.read())[1]) / 1024


def ask(url: str, seed: int, tokens: int) -> str:
    """The text that the page writes for a seed, as the client shows it: HTML."""
    from gradio_client import Client

    client = Client(url, verbose=False)
    _, _, text, *_ = client.predict("ROMEO:", 0.8, 0, 1, tokens, 1, seed, api_name="/write")
    return text


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub name of the model")
    parser.add_argument("--clients", type=int, default=64, help="clients that ask at the same time")
    parser.add_argument("--rounds", type=int, default=3, help="how often each client asks")
    parser.add_argument("--tokens", type=int, default=50, help="tokens of each text")
    parser.add_argument("--port", type=int, default=7999, help="where the page listens")
    options = parser.parse_args()

    url = f"http://127.0.0.1:{options.port}"
    command = [sys.executable, "-m", "scripts.demo", "--model", options.model, "--port", str(options.port)]
    page = subprocess.Popen(command, cwd=common.ROOT, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                ask(url, 0, 10)
                break
            except Exception:  # the client raises what its transport raises, until the page is up
                if page.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(1)
        expected = {seed: ask(url, seed, options.tokens) for seed in range(options.clients)}
        megabytes, seconds = [resident_megabytes(page.pid)], []
        for _ in range(options.rounds):
            together = threading.Barrier(options.clients)

            def client(seed, together=together):
                together.wait()
                began = time.perf_counter()
                return ask(url, seed, options.tokens), time.perf_counter() - began

            with ThreadPoolExecutor(options.clients) as pool:
                answers = list(pool.map(client, expected))
            wrong = [seed for seed, (text, _) in zip(expected, answers, strict=True) if text != expected[seed]]
            if wrong:
                raise SystemExit(f"{len(wrong)} clients got another text than a quiet page gives: seeds {wrong[:8]}")
            seconds.append(max(waited for _, waited in answers))
            megabytes.append(resident_megabytes(page.pid))
            print(f"{options.clients} right answers in {seconds[-1]:.1f} s, {megabytes[-1]:.0f} MB", flush=True)
    finally:
        page.terminate()
        page.wait()
    common.record(
        "demo_load",
        "clients at the demo at once: every text was that of its seed; seconds of a round, resident MB after it",
        clients=options.clients,
        tokens=options.tokens,
        seconds=seconds,
        resident_megabytes=megabytes,
    )


if __name__ == "__main__":
    main()
