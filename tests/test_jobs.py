"""The script for rented machines, in a process of its own, with the loopback Hub."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
from helpers import FOLDER_FILES, REPO, ROOT, TEXT, commits, published
from huggingface_hub import HfApi


SCRIPT = ROOT / "recipes" / "jobs" / "train.py"
TINY = [
    *("--preset", "modern-1m", "--model_overrides", json.dumps({"hidden_size": 32, "max_position_embeddings": 32})),
    *("--save_steps", "4", "--eval_steps", "4", "--per_device_train_batch_size", "4", "--sample_length", "5"),
]


def job(*argv, cwd):
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, SCRIPT, *argv], cwd=cwd, env=env, capture_output=True, text=True)


def test_a_job_reads_a_text_by_its_address_and_pushes_checkpoints_and_the_model(hub, here):
    (here / "text").mkdir()
    (here / "text" / "book.txt").write_text(TEXT)
    HfApi().create_repo("ada/text")
    HfApi().upload_folder(repo_id="ada/text", folder_path=here / "text")
    address = f"{hub.url}/ada/text/resolve/main/book.txt"
    done = job("--train_file", address, "--push_to_hub", REPO, "--max_steps", "8", *TINY, cwd=here)
    assert done.returncode == 0, done.stderr
    assert commits(hub)[0].title == "End of training"
    assert any(commit.title == "Training in progress, step 4" for commit in commits(hub))
    assert set(published(hub)) - {".gitattributes"} == FOLDER_FILES


@pytest.fixture
def settings_of():
    spec = importlib.util.spec_from_file_location("job", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.settings_of


NEEDED = ["--train_file", "book.txt", "--push_to_hub", REPO]


def test_a_job_trains_for_less_than_its_timeout(settings_of, here):
    assert settings_of(NEEDED, here)["minutes"] == 22
    assert settings_of([*NEEDED, "--timeout", "120"], here)["minutes"] == 112
    assert settings_of([*NEEDED, "--minutes", "5"], here)["minutes"] == "5"


@pytest.mark.parametrize("budget", ["max_steps", "num_train_epochs"])
def test_a_job_of_a_given_length_has_no_minutes(budget, settings_of, here):
    assert "minutes" not in settings_of([*NEEDED, f"--{budget}", "3"], here)


@pytest.mark.parametrize("value", ["ROMEO:", "no", "[1"])
def test_a_value_is_what_was_written(value, settings_of, here):
    assert settings_of([*NEEDED, "--sample_prompt", value], here)["sample_prompt"] == value


@pytest.mark.parametrize(("argv", "told"), [(["--timeout", "8"], "more than 8"), (["--precision"], "--name value")])
def test_a_jobs_mistake_is_one_line(argv, told, settings_of, here, capsys):
    with pytest.raises(SystemExit, match="2"):
        settings_of([*NEEDED, *argv], here)
    assert told in capsys.readouterr().err
