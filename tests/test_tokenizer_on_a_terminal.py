"""`AutoTokenizer` on a terminal, without this package: does transformers ask whether to run the model's code?

It reads the model's configuration before any file of the tokenizer, and the configuration names code (`auto_map`), so
nothing that a folder contains can prevent the question. `trust_remote_code=False` does, and the examples pass it.
"""

import os
import subprocess
import sys

import pytest


pty = pytest.importorskip("pty")
QUESTION = "Do you wish to run the custom code?"


def run_on_a_terminal(code: str, cwd, answer: str) -> str:
    """What `code` prints to a terminal in a process that cannot import this package; `answer` is typed ahead."""
    leader, follower = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), follower)
    process = subprocess.Popen([sys.executable, "-c", code], cwd=cwd, env=environment, **streams)
    os.close(follower)
    os.write(leader, f"{answer}\n".encode())
    printed = b""
    while True:
        try:
            piece = os.read(leader, 4096)
        except OSError:  # Linux: the other end is closed
            piece = b""
        if not piece:
            break
        printed += piece
    os.close(leader)
    assert process.wait() == 0, printed.decode()
    return printed.decode()


@pytest.mark.parametrize(("argument", "asks"), [("", True), (", trust_remote_code=False", False)])
def test_the_tokenizer_loads_without_a_question_if_told_not_to_run_code(argument, asks, trained, tmp_path):
    code = f"""
import sys
from transformers import AutoTokenizer
print(AutoTokenizer.from_pretrained({str(trained)!r}{argument})("12 green")["input_ids"])
assert "modeling_gptlite" not in sys.modules
"""
    printed = run_on_a_terminal(code, tmp_path, answer="n")
    assert (QUESTION in printed) == asks
    assert "]" in printed.splitlines()[-1]  # the ids: it loads after the answer "n" as well
