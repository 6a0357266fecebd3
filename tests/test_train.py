"""`runs/train.py`: a run that starts in Python is the run of the command, and resumes bit for bit;
runs on examples."""

import itertools
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from helpers import ANSWERS, TALKS, call, interrupted, results, same_weights, train_tiny, write_rows
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from modeling_gptlite.errors import UserError
from modeling_gptlite.runs import record as records
from modeling_gptlite.runs import start as former
from modeling_gptlite.runs.record import read_run
from modeling_gptlite.runs.resume import ResumeError
from modeling_gptlite.runs.train import start, start_from
from scripts import generate


# The settings of `train_tiny`
MODEL = {
    "preset": "modern-1m",
    "model_overrides": '{"hidden_size": 32, "num_hidden_layers": 2, "max_position_embeddings": 32}',
}
DATA = {"sample_length": 40, "language": "en", "license": "cc0-1.0"}
TRAINING = {
    "optimizer": "muon",
    "muon_momentum_warmup": 1,
    "max_steps": 20,
    "warmup_steps": 2,
    "eval_steps": 10,
    "save_steps": 10,
    "logging_steps": 5,
    "per_device_train_batch_size": 8,
}
SETTINGS = {**MODEL, **DATA, **TRAINING}


@pytest.fixture
def settings(text_file, tmp_path):
    return {**SETTINGS, "train_file": [str(text_file)], "output_dir": str(tmp_path / "run")}


def test_a_run_from_python_is_the_run_of_the_command(settings, trained, tmp_path):
    record = start_from(**settings).train()
    assert same_weights(tmp_path / "run", trained)
    assert record["results"]["loss"] == read_run(trained)["results"]["loss"]
    assert record["arguments"] == read_run(trained)["arguments"]


def test_a_run_from_python_resumes_bit_for_bit(settings, trained, tmp_path):
    interrupted(start_from(**settings), 14)
    run = start_from(**settings)
    assert run.checkpoint == tmp_path / "run" / "checkpoint-14"
    run.train()
    assert same_weights(tmp_path / "run", trained)


def test_the_order_of_the_windows_is_part_of_a_run(settings):
    run = interrupted(start_from(**settings), 14)
    assert run.identity["windows"] == run.facts["data"]["windows"] == "without replacement"
    resumed = start_from(**settings)
    assert not resumed.data.train.replacement
    manifest = resumed.checkpoint / "manifest.json"
    written = json.loads(manifest.read_text())
    written["run"]["windows"] = "another order"
    manifest.write_text(json.dumps(written))
    with pytest.raises(ResumeError, match="windows was another order and is now without replacement"):
        start_from(**settings)
    del written["run"]["windows"]  # as version 0.1 left it
    manifest.write_text(json.dumps(written))
    old = interrupted(start_from(**settings), 18)
    assert old.data.train.replacement
    assert "windows" not in old.facts["data"]
    again = start_from(**settings)
    assert again.checkpoint.name == "checkpoint-18"
    assert again.data.train.replacement


def test_a_second_call_of_train_resumes(settings, trained, tmp_path):
    interrupted(start_from(**settings), 14).train()
    assert same_weights(tmp_path / "run", trained)


def test_a_run_that_python_interrupted_is_resumed_by_the_command(settings, trained, text_file, tmp_path):
    interrupted(start_from(**settings), 14)
    train_tiny(text_file, tmp_path / "run")
    assert same_weights(tmp_path / "run", trained)


def test_nothing_is_assigned_to_the_arguments_of_a_run(settings):
    run = start_from(**settings)
    before = records.plain([vars(group) for group in run.args])
    run.train()
    assert records.plain([vars(group) for group in run.args]) == before


def test_the_former_module_can_still_be_imported():
    assert (former.start_from, former.start) == (start_from, start)


def test_another_setting_is_refused_with_the_difference(settings):
    interrupted(start_from(**settings), 14)
    with pytest.raises(ResumeError, match=r"another run: learning_rate was 0\.001 and is now 0\.5;"):
        start_from(**settings, learning_rate=0.5)


def test_a_finished_run_is_refused_before_the_text_is_read(trained):
    with pytest.raises(ResumeError, match="finished run"):
        start_from(output_dir=str(trained), train_file=["nowhere.txt"])


def test_the_time_of_training_adds_up_over_interruptions(settings, monkeypatch):
    ticks = itertools.count()  # a second passes whenever the clock is read
    monkeypatch.setattr(records, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    interrupted(start_from(**settings), 14)
    resumed = start_from(**settings)
    saved = json.loads((resumed.checkpoint / "trainer_state.json").read_text())["log_history"]
    before = max(row["seconds"] for row in saved if "seconds" in row)
    record = resumed.train()
    after = record["results"]["train_seconds"]
    assert before > 0
    new = [row["seconds"] for row in record["log_history"][len(saved) :] if "seconds" in row]
    assert new == [before + tick for tick in range(1, len(new) + 1)]
    assert after > new[-1]
    seconds = [row["seconds"] for row in record["log_history"] if "seconds" in row]
    assert seconds == sorted(seconds)
    assert resumed.clock.seconds() == after  # it stands still after training


def test_a_recipe_is_found_by_name_and_settings_replace_its_own(text_file, tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        start_from("quickstart", train_file=["nowhere.txt"], output_dir=str(tmp_path))
    small = {**SETTINGS, "short_context": 16}
    run = start_from("quickstart", **small, train_file=[str(text_file)], output_dir=str(tmp_path / "run"))
    assert run.facts["data"]["name"] == "bottles.txt"
    assert run.args.training.max_steps == 20
    assert not list((tmp_path / "run").iterdir())


@pytest.mark.parametrize(("epochs", "steps"), [(0.001, 1), (1, 72), (2.5, 180)])
def test_steps_follow_from_epochs(epochs, steps, settings):
    run = start_from(**{**settings, "max_steps": None, "num_train_epochs": epochs})
    assert run.args.training.max_steps == run.data.steps == steps
    assert len(run.data.train) == steps * 8
    assert "max_steps" not in run.facts["arguments"]


def test_a_run_with_enough_evaluations_ends_with_advice(settings, capsys):
    start_from(**{**settings, "eval_steps": 5, "save_steps": 5}).train()
    assert capsys.readouterr().out.endswith("\nthe validation loss still fell at the end: more time would help\n")


def test_progress_is_reported_to_the_caller(text_file, tmp_path, capsys):
    places = {"train_file": str(text_file), "output_dir": str(tmp_path / "run")}
    lines = []
    start({**SETTINGS, **places, "eval_sample_length": 0}, log=lines.append).train()
    assert lines[0].startswith("bottles.txt: ")
    assert "parameters, 256 tokens per step" in lines[1]
    assert lines[-1].startswith("validation loss ")
    assert "bottles.txt" not in capsys.readouterr().out


# ---- Examples -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def answering(tmp_path_factory, trained):
    """The toy model, fine-tuned to answer, and the file that it learnt from."""
    folder = tmp_path_factory.mktemp("answering")
    write_rows(folder / "answers.jsonl", ANSWERS)
    train_tiny(folder / "answers.jsonl", folder / "run", f"--model_name_or_path={trained}", "--max_steps=80")
    return folder / "run"


def test_a_model_that_learnt_completions_ends_them(answering, capsys):
    code, out, _ = call(generate.main, f"--model={answering}", "--prompt=7 green ", "--greedy", capsys=capsys)
    assert (code, out) == (0, "7 green bottles!\n")
    tokenizer = AutoTokenizer.from_pretrained(answering)
    model = AutoModelForCausalLM.from_pretrained(answering)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    text = pipeline("text-generation", model=model, tokenizer=tokenizer)("31 green ", do_sample=False)
    assert text[0]["generated_text"] == "31 green bottles!"


def test_the_record_of_a_run_on_examples_counts_completions_only(answering):
    run = json.loads((answering / "run.json").read_text())
    data, results = run["data"], run["results"]
    assert (data["train_examples"], data["validation_examples"]) == (90, 10)
    assert (data["validation_targets"], data["validation_characters"]) == (10 * 9, 10 * 8)
    assert results["bits_per_character"] == pytest.approx(results["loss"] * 9 / 8 / 0.6931471805599453)
    assert run["prompt"] == "90 green "
    assert run["sample"].startswith("90 green ")
    card = (answering / "README.md").read_text()
    assert "It completes prompts like those in its training examples." in card
    assert "90 examples to train, 10 to validate" in card


def test_a_resumed_run_on_examples_ends_with_the_same_weights(trained, answering, tmp_path):
    flags = [f"--model_name_or_path={trained}", "--max_steps=80"]
    newest = max(answering.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    older = next(path for path in answering.glob("checkpoint-*") if path != newest)
    shutil.copytree(older, tmp_path / "run" / older.name)
    train_tiny(answering.parent / "answers.jsonl", tmp_path / "run", *flags, "--resume_from_checkpoint=true")
    resumed, undisturbed = (load_file(folder / "model.safetensors") for folder in (tmp_path / "run", answering))
    assert all(torch.equal(resumed[name], undisturbed[name]) for name in undisturbed)


@pytest.fixture(scope="session")
def talking_gpt2(gpt2, tmp_path_factory):
    folder = tmp_path_factory.mktemp("talking")
    flags = [f"--model_name_or_path={gpt2}", "--max_steps=80", "--learning_rate=1e-2"]
    train_tiny(write_rows(folder / "talks.jsonl", TALKS), folder / "run", *flags)
    return folder / "run"


@pytest.mark.parametrize("folder", ["talking", "talking_gpt2"])
def test_a_conversation_is_learnt_and_the_pipeline_chats(folder, request):
    folder = request.getfixturevalue(folder)
    assert (folder / "chat_template.jinja").exists()
    chat = pipeline("text-generation", model=str(folder), trust_remote_code=False)
    (answer,) = chat([{"role": "user", "content": "31 green"}], do_sample=False)
    assert answer["generated_text"][-1] == {"role": "assistant", "content": "bottles!"}


def test_a_model_can_start_from_examples_alone(tmp_path):
    train_tiny(write_rows(tmp_path / "talks.jsonl", TALKS), tmp_path / "run", "--tokenizer=bpe", "--vocab_size=280")
    assert results(tmp_path / "run")["loss"] < 5
