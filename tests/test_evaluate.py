"""The evaluate command: what it prints, records and refuses."""

import json
import math
import re
import shutil

import pytest
from helpers import ROOT, TEXT, call, files, refused

from modeling_gptlite.data.sources import SOURCES, BuiltIn, SourceArguments, TextFile
from modeling_gptlite.evaluation import statistics
from modeling_gptlite.evaluation.evaluate import ROWS, fitting_batch, read_as_trained, source_of_run
from modeling_gptlite.runs.publish import staged
from scripts import evaluate


FEW = ["--num_samples=4", "--max_new_tokens=40"]


def evaluated(*argv, capsys):
    code, out, err = call(evaluate.main, *argv, capsys=capsys)
    assert code == 0, err
    return out


def test_the_command_repeats_the_loss_of_the_run(trained, text_file, tmp_path, capsys):
    out = evaluated(
        f"--model={trained}", f"--train_file={text_file}", f"--output={tmp_path / 'e.json'}", *FEW, capsys=capsys
    )
    results = json.loads((tmp_path / "e.json").read_text())
    run, (row,) = json.loads((trained / "run.json").read_text()), results["models"]
    assert row["loss"] == pytest.approx(run["results"]["loss"], rel=1e-6)
    assert row["bits_per_character"] == pytest.approx(run["results"]["bits_per_character"], rel=1e-6)
    assert row["perplexity"] == pytest.approx(math.exp(row["loss"]))
    assert row["loss_interval"][0] < row["loss"] < row["loss_interval"][1]
    assert results["data"]["sha256"] == run["data"]["sha256"]
    assert f"{row['loss']:.4f}" in out
    assert row["bleu_signature"] in out
    assert row["longest_copy_text"] in TEXT[: int(0.9 * len(TEXT))]
    assert results["true_text"]["known_words"] == 1


def test_the_windows_are_those_of_the_training(trained, text_file, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    record["data"]["context_length"] = 16  # of 32 that the model has
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    results = {}
    for name, flags in {"trained": [], "given": ["--context_length=16"], "longest": ["--context_length=32"]}.items():
        out = evaluated(
            *(f"--model={tmp_path / 'run'}", f"--train_file={text_file}", f"--output={tmp_path / name}"),
            *("--num_samples=0", *flags),
            capsys=capsys,
        )
        (results[name],) = json.loads((tmp_path / name).read_text())["models"]
        assert re.search(r"precision +fp32", out)
    assert results["trained"] == results["given"] != results["longest"]


def test_models_are_compared_on_the_same_text(trained, text_file, tmp_path, capsys):
    models = [str(trained), str(trained / "checkpoint-10")]
    out = evaluated(
        "--model", *models, f"--train_file={text_file}", f"--output={tmp_path / 'e.json'}", *FEW, capsys=capsys
    )
    first, second = json.loads((tmp_path / "e.json").read_text())["models"]
    assert second["difference"] == pytest.approx(second["loss"] - first["loss"], abs=1e-6)
    assert second["difference_interval"][0] > 0  # twenty steps are better than ten, beyond doubt
    assert "difference" not in first
    assert f"{second['difference']:+.4f}" in out


def test_a_seed_repeats_the_results(trained, text_file, tmp_path, capsys):
    for name in ("a", "b"):
        evaluated(f"--model={trained}", f"--train_file={text_file}", f"--output={tmp_path / name}", *FEW, capsys=capsys)
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text()


def test_a_perplexity_that_json_cannot_hold_is_null(trained, text_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("modeling_gptlite.training.metrics.perplexity", lambda loss: math.inf)
    output = tmp_path / "e.json"
    out = evaluated(f"--model={trained}", f"--train_file={text_file}", f"--output={output}", *FEW, capsys=capsys)
    assert "inf" in out
    (row,) = json.loads(output.read_text(), parse_constant=pytest.fail)["models"]
    assert row["perplexity"] is None


def test_the_text_of_the_run_is_the_default(trained, text_file, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(trained, tmp_path / "run")
    run = json.loads((folder / "run.json").read_text())
    run["data"]["name"] = "tinyshakespeare"
    (folder / "run.json").write_text(json.dumps(run))
    monkeypatch.setitem(SOURCES, "tinyshakespeare", BuiltIn(lambda: [TextFile(text_file)], "en", "mit"))
    out = evaluated(f"--model={folder}", "--num_samples=0", capsys=capsys)
    assert f"{run['results']['loss']:.4f}" in out
    assert "BLEU" not in out


def test_a_flag_wins_over_the_record(trained, tmp_path):
    run = json.loads((trained / "run.json").read_text())
    run["data"]["hub_dataset"] = "ada/texts"
    run["arguments"] |= {"text_column": "story", "validation_fraction": 0.2}
    (tmp_path / "run.json").write_text(json.dumps(run))
    args = source_of_run(str(tmp_path), SourceArguments(validation_fraction=0.5), given={"validation_fraction"})
    assert args == SourceArguments(dataset="ada/texts", text_column="story", validation_fraction=0.5)


def test_a_text_that_was_trained_on_is_divided_as_it_was_then(trained, tmp_path):
    record = json.loads((trained / "run.json").read_text())
    record["arguments"] |= {"validation_fraction": 0.05, "documents": "lines"}
    (tmp_path / "run.json").write_text(json.dumps(record))
    (name,), told = record["arguments"]["train_file"], []
    same, other = (SourceArguments(train_file=[f"elsewhere/{file}"]) for file in (name, "other.txt"))
    found = read_as_trained(str(tmp_path), same, {"documents"}, told.append)
    assert (found.validation_fraction, found.documents, found.train_file) == (0.05, "files", same.train_file)
    assert told == ["read as in its training: validation_fraction 0.05"]
    assert read_as_trained(str(tmp_path), other, set(), told.append) == other
    assert read_as_trained("ada/on-the-hub", same, set(), told.append) == same


def test_a_context_longer_than_the_text_is_not_padded(trained, tmp_path, monkeypatch, capsys):
    (tmp_path / "short.txt").write_text(TEXT[:100])
    widths, score = [], statistics.score_tokens
    monkeypatch.setattr(
        statistics,
        "score_tokens",
        lambda model, windows, size: widths.append(windows.context) or score(model, windows, size),
    )
    evaluated(f"--model={trained}", f"--train_file={tmp_path / 'short.txt'}", "--num_samples=0", capsys=capsys)
    assert widths == [9]  # of 32; ten characters validate


@pytest.mark.parametrize(("parameters", "expected"), [(10**6, 64), (10**9, 2)])
def test_a_large_model_reads_few_texts_at_the_same_time(parameters, expected):
    model = type("Model", (), {"num_parameters": lambda self: parameters})()
    assert fitting_batch(model, 2048, 64) == expected


def test_a_model_that_is_not_there_is_found_before_any_is_evaluated(trained, text_file, monkeypatch, capsys):
    monkeypatch.delattr("modeling_gptlite.evaluation.statistics.score_tokens")
    argv = ["--model", trained, trained.parent / "nowhere", f"--train_file={text_file}"]
    refused(evaluate.main, *argv, capsys=capsys, told=["no such folder", "nowhere"])


def test_the_card_and_a_push_tell_the_results(trained, text_file, tmp_path, capsys):
    folder = shutil.copytree(trained, tmp_path / "run")
    evaluated(f"--model={folder}", f"--train_file={text_file}", "--card", *FEW, capsys=capsys)
    before, after = (json.loads((place / "run.json").read_text()) for place in (trained, folder))
    results = after.pop("evaluation")
    assert after == before
    with staged(folder, "ada/bottles") as published:
        cards = [(place / "README.md").read_text() for place in (folder, published)]
    for text in cards:
        assert f"| BLEU (characters) | {results['models'][0]['bleu']:.2f} |" in text
        assert results["models"][0]["chrf_signature"] in text
        assert "## Training\n" in text
    evaluated(f"--model={folder}", f"--train_file={text_file}", "--card", "--num_samples=0", capsys=capsys)
    assert "BLEU" not in (folder / "README.md").read_text()
    assert "95 % interval" in (folder / "README.md").read_text()


def first_cells(markdown):
    """What the first column of the tables in a text contains."""
    return re.findall(r"^\| ([^|]+?) \|", markdown, re.MULTILINE)


def test_page_and_card_have_the_words_of_the_table():
    page = (ROOT / "docs/training.md").read_text()
    assert first_cells(page[page.index("| row | meaning |") :])[1:] == list(ROWS)
    card = (ROOT / "model_card.md").read_text()
    section = card[card.index("## Evaluation") : card.index("## Training")]
    labels = first_cells(section)[1:]
    assert len(labels) == 8
    assert set(labels) <= set(ROWS)


MISTAKES = {
    "a text that only the user can find": ([], ["bottles.txt", "--train_file"]),
    "two texts": (["--train_file=x", "--dataset=y"], ["--train_file", "--dataset"]),
    "no such file": (["--train_file=nowhere.txt"], ["nowhere.txt"]),
    "negative samples": (["--num_samples=-1"], ["--num_samples", "-1"]),
    "no tokens": (["--max_new_tokens=0"], ["--max_new_tokens"]),
    "temperature": (["--temperature=0"], ["--temperature"]),
    "no batch": (["--batch_size=0"], ["--batch_size"]),
    "context": (["--train_file={text}", "--context_length=33"], ["--context_length", "32", "33"]),
    "no folder for the output": (["--train_file={text}", "--output=nowhere/x.json"], ["nowhere"]),
    "device": (["--train_file={text}", "--device=toaster"], ["--device", "toaster"]),
    "a typo": (["--tempreature=1"], ["temperature"]),
}


@pytest.mark.parametrize(("argv", "told"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_refused_in_one_line(argv, told, trained, text_file, capsys):
    before = files(trained)
    argv = [argument.format(text=text_file) for argument in argv]
    refused(evaluate.main, f"--model={trained}", *argv, capsys=capsys, told=told)
    assert files(trained) == before


def test_a_model_without_a_record_needs_a_text(trained, text_file, tmp_path, capsys):
    folder = shutil.copytree(trained, tmp_path / "bare")
    (folder / "run.json").unlink()
    refused(evaluate.main, f"--model={folder}", capsys=capsys, told=["run.json", "--dataset"])
    refused(evaluate.main, f"--model={folder}", f"--train_file={text_file}", "--card", capsys=capsys, told=["run.json"])
    (folder / "run.json").write_text("{}")
    refused(evaluate.main, f"--model={folder}", capsys=capsys, told=["not the record of a run"])


def test_the_card_is_one_models(trained, text_file, capsys):
    refused(
        evaluate.main,
        "--model",
        trained,
        trained,
        f"--train_file={text_file}",
        "--card",
        capsys=capsys,
        told=["--card"],
    )


def test_without_sacrebleu_the_extra_is_named(trained, text_file, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "sacrebleu", None)
    told = ["gptlite[eval]", "--num_samples 0"]
    refused(evaluate.main, f"--model={trained}", f"--train_file={text_file}", capsys=capsys, told=told)
