"""The model card: what it says, that its examples run, and that a damaged record is refused."""

import json
import re

import pytest
from helpers import REPO, push, run_python, train_tiny
from huggingface_hub import ModelCard

from modeling_gptlite.runs.card import render_card
from modeling_gptlite.runs.record import RecordError, read_run


def test_the_card_is_valid_and_tells_what_was_measured(trained, hub, capsys):
    push(trained, capsys=capsys)
    card = ModelCard(hub.repo(REPO).files()["README.md"].decode())
    assert [request.status for request in hub.seen("POST", "/api/validate-yaml")] == [200]  # sent by the client
    results = json.loads((trained / "run.json").read_text())["results"]
    assert card.data.tags == ["gptlite", "custom_code"]
    assert (card.data.license, card.data.language, card.data.model_name) == ("cc0-1.0", "en", "bottles")
    measured = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert measured == {name: round(results[name], 4) for name in ("loss", "perplexity", "bits_per_character")}
    assert "![Training and validation loss](loss.png)" in card.text
    assert "revision=" in card.text
    assert not re.search(r"\{\{|\{%|Undefined|None", card.text)


@pytest.mark.parametrize("kind", ["gptlite", "native"])
def test_the_cards_usage_block_runs_as_it_stands(kind, trained, hub, tmp_path, capsys):
    push(trained, f"--as={kind}", capsys=capsys)
    card = hub.repo(REPO).files()["README.md"].decode()
    (block,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert ("trust_remote_code" in block) == (kind == "gptlite")
    assert run_python(block, tmp_path).strip()


def test_a_model_tuned_from_the_hub_names_its_base_and_carries_its_own_code(trained, text_file, hub, tmp_path, capsys):
    push(trained, capsys=capsys)
    train_tiny(text_file, tmp_path / "tuned", f"--model_name_or_path={REPO}")
    push(tmp_path / "tuned", repo_id="ada/tuned", capsys=capsys)
    files = hub.repo("ada/tuned").files()
    assert ModelCard(files["README.md"].decode()).data.base_model == REPO
    assert REPO not in files["config.json"].decode()
    assert {"configuration_gptlite.py", "modeling_gptlite.py"} <= files.keys()


def test_the_cards_recipe_is_one(trained, tmp_path):
    import yaml

    (recipe,) = re.findall(r"```yaml\n(.*?)```", (trained / "README.md").read_text(), re.DOTALL)
    arguments = json.loads((trained / "run.json").read_text())["arguments"]
    assert yaml.safe_load(recipe) == arguments


BROKEN = {
    "no results": lambda record: record.pop("results"),
    "results are text": lambda record: record.update(results="good"),
    "a loss of text": lambda record: record["results"].update(loss="low"),
    "no steps": lambda record: record["results"].pop("steps"),
    "data is null": lambda record: record.update(data=None),
    "parameters are a list": lambda record: record.update(parameters=[]),
    "a name that the template uses": lambda record: record.update(card_data="x", template_path="/etc/passwd"),
}


@pytest.mark.parametrize("change", BROKEN.values(), ids=BROKEN)
def test_a_damaged_record_is_refused_in_one_line(change, trained):
    record = read_run(trained)
    change(record)
    with pytest.raises(RecordError, match=r"run\.json is not the record of a run: .+; delete it or correct it"):
        render_card(record, REPO)


def test_a_perplexity_too_large_for_a_number_has_a_card(trained):
    record = read_run(trained)
    record["results"]["perplexity"] = None
    card = ModelCard(render_card(record, REPO))
    assert "over 1e308" in card.text
    assert [result.metric_type for result in card.data.eval_results] == ["loss", "bits_per_character"]
