"""How every command starts and ends: exit codes, one line for a mistake, Ctrl-C from the first import on."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from helpers import ROOT, call, results

from modeling_gptlite.errors import UserError
from scripts import convert, demo, evaluate, generate, push_to_hub, train
from scripts.cli import printable


RECIPE = """
model_name_or_path: ~/model
tokenizer: ~/model
train_file: ["~/text.txt"]
max_steps: 1
optimizer: adamw
sample_length: 0
"""


def start(*argv, **options):
    """A command of this clone in a process of its own."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, argv)], env=env, text=True, stderr=subprocess.PIPE, **options
    )


def raising(error):
    def main(argv):
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("--seed must\nbe 0"), 2, "error: --seed must be 0"),
        (ValueError("bad value"), 1, "error: ValueError: bad value (unexpected; --traceback shows where)"),
        (OSError(28, "disk full"), 1, "error: [Errno 28] disk full (unexpected; --traceback shows where)"),
        (UserError("\x1b[2J"), 2, "error: \\x1b[2J"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_exception_becomes_an_exit_code_and_one_line(error, code, line, capsys):
    assert call(raising(error), capsys=capsys) == (code, "", line + "\n")


def test_traceback_shows_the_whole_error(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gptlite", "train", "--traceback"])
    code, _, err = call(raising(UserError("no text")), capsys=capsys)
    assert code == 2
    assert err.startswith("Traceback")
    assert err.endswith("error: no text\n")


@pytest.mark.parametrize("seconds", [0.3, 1.5])
@pytest.mark.parametrize("module", ["scripts", "scripts.train", "scripts.convert"])
def test_ctrl_c_during_the_imports_is_one_line(module, seconds, tmp_path):
    flags = ["train"] if module == "scripts" else []
    process = start(module, *flags, "--output_dir=run", "--dataset=python-docs", cwd=tmp_path)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    assert process.communicate()[1] == "interrupted\n"
    assert process.returncode == 130
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_inside_exec_during_the_imports_exits_with_130(tmp_path):
    code = "import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(9)"
    (tmp_path / "torch.py").write_text(f"exec({code!r})")
    process = start("scripts", "train", cwd=tmp_path)
    assert process.communicate()[1] == "interrupted\n"
    assert process.returncode == 130


def test_ctrl_c_while_text_is_generated_is_one_line(trained):
    argv = ["scripts.generate", f"--model={trained}", "--prompt=12", "--max_new_tokens=1000000"]
    process = start(*argv, stdout=subprocess.PIPE)
    assert process.stdout.read(10).startswith("12")
    process.send_signal(signal.SIGINT)
    assert process.communicate()[1] == "interrupted\n"
    assert process.returncode == 130


@pytest.mark.parametrize(
    ("redirection", "code", "line"),
    [
        (">/dev/full", 1, "No space left on device"),
        (">&-", 2, "standard output is closed"),
        ("<&-", 0, ""),
        ("| head -c 1", 0, ""),
    ],
)
def test_a_stream_that_is_closed_or_full_is_one_line(redirection, code, line, trained):
    command = f"{sys.executable} -m scripts.generate --model {trained} --max_new_tokens 500 {redirection}"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert line in done.stderr
    assert len(done.stderr.splitlines()) == bool(line)


def test_training_goes_on_without_a_reader(text_file, tmp_path):
    flags = f"--train_file {text_file} --max_steps 30 --eval_steps 1 --output_dir {tmp_path / 'run'} --sample_length 10"
    command = f"{sys.executable} -m scripts.train {flags} | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(done.stderr.splitlines()) == 1
    assert "training continues" in done.stderr
    assert results(tmp_path / "run")["steps"] == 30


def test_a_closed_terminal_ends_training_with_a_checkpoint(text_file, tmp_path):
    pty = pytest.importorskip("pty")
    leader, follower = pty.openpty()
    take = "import fcntl, signal, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)"  # as a shell in a window has it
    heed = "signal.signal(signal.SIGHUP, signal.SIG_DFL)"  # also if the tests run under nohup
    code = f"{take}; {heed}; from scripts import cli, train; cli.run(train.main)"
    flags = [f"--train_file={text_file}", f"--output_dir={tmp_path / 'run'}", "--max_steps=100000", "--logging_steps=1"]
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), follower)
    process = subprocess.Popen([sys.executable, "-c", code, *flags], cwd=ROOT, start_new_session=True, **streams)
    os.close(follower)
    while b"step " not in os.read(leader, 4096):
        pass
    os.close(leader)  # the window is closed
    try:
        assert process.wait(60) == 128 + signal.SIGHUP
    finally:
        process.kill()
    assert len(list((tmp_path / "run").glob("checkpoint-*"))) == 1


@pytest.mark.parametrize(
    "argv",
    [
        [train, "--config=~/recipe.yaml", "--output_dir=run"],
        [generate, "--model=~/model", "--prompt_file=~/prompt.txt", "--max_new_tokens=1"],
        [evaluate, "--model=~/model", "--train_file=~/text.txt", "--output=~/found.json", "--num_samples=2"],
        [convert, "--to=qwen3", "--tokenizer=~/model", "~/model", "~/converted"],
        [demo, "--static=~/page", "~/model"],
        [push_to_hub, "--model=~/model", "--repo_id=a/b", "--dry_run"],
    ],
    ids=lambda argv: argv[0].__name__,
)
def test_every_command_knows_the_home_folder(argv, trained, text_file, tmp_path, monkeypatch, capsys):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    shutil.copytree(trained, tmp_path / "model")
    shutil.copy(text_file, tmp_path / "text.txt")
    (tmp_path / "prompt.txt").write_text("12")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    code, _, err = call(argv[0].main, *argv[1:], capsys=capsys)
    assert code == 0, err
    assert "~" not in os.listdir()


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_text_that_the_output_cannot_encode_is_escaped(encoding, text_file, tmp_path):
    text = text_file.read_text(encoding="utf-8").replace("bottles", "🎉 grün")
    (tmp_path / "party.txt").write_text(text, encoding="utf-8")
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUTF8": "0", "PYTHONIOENCODING": encoding}
    party = {"cp1252": "\\U0001f389ü", "ascii": "\\U0001f389\\xfc"}[encoding]
    train = [f"--train_file={tmp_path / 'party.txt'}", "--max_steps=1", "--sample_prompt=🎉ü"]
    generate = [f"--model={tmp_path / 'run'}", "--max_new_tokens=1"]
    for argv, code, expected in [
        (["train", *train, f"--output_dir={tmp_path / 'run'}"], 0, party),
        (["generate", *generate, "--prompt=🎉ü"], 0, party),
        (["generate", *generate, "--prompt=🎈"], 2, "\\U0001f388"),
    ]:
        done = subprocess.run([sys.executable, "-m", "scripts", *argv], env=env, cwd=tmp_path, capture_output=True)
        assert done.returncode == code, done.stderr
        assert expected in (done.stdout + done.stderr).decode(encoding)


@pytest.mark.parametrize(
    ("argv", "code", "told"),
    [
        ([], 0, ["train", "generate", "evaluate", "convert", "push", "demo"]),
        (["--help"], 0, ["gptlite COMMAND"]),
        (["--version"], 0, ["gptlite "]),
        (["trian"], 2, ["trian", "did you mean 'train'"]),
        (["xyz"], 2, ["xyz", "commands are train, generate"]),
        (["push", "--repo", "x"], 2, ["--repo", "repo_id"]),
    ],
)
def test_the_command_dispatches(argv, code, told):
    process = start("scripts", *argv, stdout=subprocess.PIPE)
    out, err = process.communicate()
    assert process.returncode == code, err
    assert all(word in out + err for word in told)
    assert len(err.splitlines()) <= 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain é 漢 🎉\n\t", "plain é 漢 🎉\n\t"),
        ("\x1b[31m", "\\x1b[31m"),
        ("a\rb\x07\x9b", "a\\rb\\x07\\x9b"),
        ("\u202eevil\u2066", "\\u202eevil\\u2066"),
    ],
)
def test_what_could_control_a_terminal_becomes_visible(text, expected):
    assert printable(text) == expected


def test_no_garbage_is_collected_during_the_imports_and_at_exit():
    code = """
import atexit, gc
atexit.register(lambda: print(gc.get_freeze_count() > 1000))  # called after those that are registered later
from scripts import cli
cli.before_imports()
assert not gc.isenabled()
cli.run(lambda: print(gc.isenabled(), gc.get_freeze_count()))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", "0", "True"]
