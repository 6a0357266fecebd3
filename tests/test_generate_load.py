"""Many prompts through `gptlite generate` from standard input: what was printed before a signal is whole."""

import os
import re
import signal
import sys
import time

import pytest

from scripts import generate
from scripts.cli import run


NEW_TOKENS = 20


def start(argv, prompts, output) -> int:
    """The process id of a child that runs the command once for each prompt, with standard output in a file."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        sys.stdout = open(output, "w", buffering=8192)  # noqa: SIM115  as if `> output`
        sys.stderr = open(output.with_suffix(".err"), "w")  # noqa: SIM115
        for prompt in prompts:
            reader, writer = os.pipe()
            os.write(writer, prompt.encode())
            os.close(writer)
            sys.stdin = os.fdopen(reader)
            run(lambda: generate.main(argv))
        code = 0
    except SystemExit as end:
        code = end.code
    finally:
        os._exit(code)


def kill(child: int, number: int, output, pattern: str, count: int) -> int:
    """Send a signal once `pattern` was printed `count` times; returns the exit code, negative for a signal."""
    deadline = time.monotonic() + 60
    while len(re.findall(pattern, output.read_text() if output.exists() else "")) < count:
        assert time.monotonic() < deadline, output.read_text()
        time.sleep(0.002)
    os.kill(child, number)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL)]


@pytest.mark.parametrize(("number", "code"), SIGNALS, ids=lambda value: str(value))
def test_samples_that_were_printed_before_a_signal_are_whole(number, code, trained, tmp_path):
    output = tmp_path / "samples.txt"
    argv = [f"--model={trained}", "--num_samples=1000000", f"--max_new_tokens={NEW_TOKENS}", "--seed=0"]
    child = start(argv, ["12 green"], output)
    assert kill(child, number, output, r"--- \d+ of 1000000 ---", 70) == code
    printed = output.read_text()
    assert printed.endswith("\n")
    heads, texts = re.findall(r"--- (\d+) of", printed), re.split(r"\n?--- \d+ of 1000000 ---\n", printed)[1:]
    assert heads == [str(n) for n in range(1, len(heads) + 1)]
    assert all(text.startswith("12 green") for text in texts)
    assert output.with_suffix(".err").read_text() == ("interrupted\n" if number == signal.SIGINT else "")


def test_each_of_many_prompts_is_answered_until_the_kill(trained, tmp_path):
    prompts = [f"{n} green bottles" for n in range(int(os.environ.get("PROMPTS", "40")))]
    output = tmp_path / "texts.txt"
    argv = [f"--model={trained}", f"--max_new_tokens={NEW_TOKENS}", "--greedy"]
    child = start(argv, prompts, output)
    assert kill(child, signal.SIGKILL, output, r"\d+ green bottles", len(prompts) // 2) == -signal.SIGKILL
    printed = output.read_text()
    positions = [printed.index(prompt) for prompt in prompts if prompt in printed]
    assert positions == sorted(positions)
    assert len(prompts) // 2 <= len(positions) < len(prompts)
    again = tmp_path / "again.txt"
    os.waitpid(start(argv, prompts[: len(positions)], again), 0)
    assert again.read_text().startswith(printed)  # half a text at most is missing, at the end
