"""The model card: what it says, that its examples run, and that a damaged record is refused."""

import ast
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from helpers import REPO, TALKS, TEXT, push, run_python, train_tiny, write_rows
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen3Config

from modeling_gptlite.runs.card import render_card
from modeling_gptlite.runs.publish import staged
from modeling_gptlite.runs.record import RecordError, read_run, write_run
from tokenization import build_bpe_tokenizer


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


@pytest.mark.parametrize("space", ["trackio_space_id", "trackio_static_space_id"])
@pytest.mark.parametrize("report_to", ["trackio", ["tensorboard", "trackio"]])
def test_the_card_links_the_dashboard_that_the_run_reported_to(report_to, space, trained):
    record, link = read_run(trained), "[Trackio](https://huggingface.co/spaces/ada/board)"
    record["arguments"] |= {"report_to": report_to, space: "ada/board"}
    assert f"| dashboard | {link} |\n| time |" in render_card(record, REPO)
    assert link not in render_card({**record, "arguments": {**record["arguments"], "report_to": "none"}}, REPO)
    assert "dashboard" not in render_card({**record, "arguments": {"report_to": report_to}}, REPO)


def test_the_cards_recipe_is_one(trained):
    (recipe,) = re.findall(r"```yaml\n(.*?)```", (trained / "README.md").read_text(), re.DOTALL)
    arguments = json.loads((trained / "run.json").read_text())["arguments"]
    assert yaml.safe_load(recipe) == arguments


BLOCKS = {
    "bash": lambda block: shlex.split(block)[-1],
    "python": lambda block: ast.literal_eval(re.search(r'generate\((".*"), max_new_tokens', block)[1]),
    "yaml": lambda block: yaml.safe_load(block)["sample_prompt"],
}


def test_the_default_prompt_is_one_line_of_the_shell(trained):
    card = render_card({**read_run(trained), "prompt": "\n"}, REPO, "gguf")
    assert f"llama-completion -hf {REPO} -no-cnv -p $'\\n'\n" in card


@pytest.mark.parametrize("prompt", ['say "no" \\', "O'Brien's", "Ёлка\n", "🎉 $HOME"])
@pytest.mark.parametrize("language", BLOCKS)
def test_every_block_of_the_card_gives_the_prompt_as_it_is(language, prompt, trained):
    record = read_run(trained)
    record["prompt"] = record["arguments"]["sample_prompt"] = prompt
    card = render_card(record, REPO, kind="gguf" if language == "bash" else "gptlite")
    (block,) = re.findall(rf"```{language}\n(.*?)```", card, re.DOTALL)
    assert BLOCKS[language](block) == prompt


@pytest.mark.parametrize("name", ["my book.txt b.txt", "книга", "книга.txt", "12 files"])
def test_the_hub_accepts_a_text_of_any_name(name, trained, hub, tmp_path, capsys):
    folder = shutil.copytree(trained, tmp_path / "model", ignore=shutil.ignore_patterns("checkpoint-*"))
    record = read_run(folder)
    record["data"]["name"] = name
    write_run(folder, record)
    push(folder, capsys=capsys)
    card = ModelCard(hub.repo(REPO).files()["README.md"].decode())
    assert {result.dataset_name for result in card.data.eval_results} == {name}


def test_a_dataset_of_the_hub_is_named_by_its_id(trained):
    record = read_run(trained)
    record["data"] |= {"hub_dataset": "ada/all_texts", "name": "all texts"}
    results = ModelCard(render_card(record, REPO)).data.eval_results
    assert {result.dataset_type for result in results} == {"ada/all_texts"}


@pytest.mark.parametrize("finished", [True, False])
def test_a_run_without_a_sample_is_in_progress_until_it_is_finished(finished, trained):
    card = render_card({**read_run(trained), "sample": "", "finished": finished}, REPO)
    assert ("still in progress" in card) == (not finished)
    assert ("![Training and validation loss](loss.png)" in card) == finished


@pytest.mark.parametrize("changes", ["", " with changes"])
def test_a_run_of_changed_code_is_not_repeated_at_its_commit(changes, trained):
    record = read_run(trained)
    record["environment"]["commit"] = 40 * "a" + changes
    card = render_card(record, REPO)
    assert f", gptlite {12 * 'a'}{changes} |" in card
    assert ("at that commit" in card) == (not changes)


@pytest.mark.parametrize("is_merged", [True, False])
def test_the_recipe_of_a_merged_adapter_is_said_to_keep_it(is_merged, trained):
    card = render_card({**read_run(trained), "lora_rank": 4, "lora_merged": is_merged}, REPO)
    assert ("keeps its LoRA adapter" in card) == is_merged


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


# ---- Other classes, adapters and formats ---------------------------------------------------------------------------


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}
CLASSES = {"llama": LlamaConfig, "gpt2": GPT2Config, "qwen3": Qwen3Config}
# What a card may say about only some models
OF_ONE_FILE_OF_CODE = ["custom_code", "two files of this repository"]
OF_GPTLITE = ["A GPTLite language model", "longer than the context", "trained from scratch", "trust_remote_code"]
OF_OTHERS = ["needs `peft`", "no remote code", "No remote code", "GGUF", "in conversations", "chat template"]
TRUE = {
    "scratch": (["custom_code", "trained from scratch", "longer than the context of 32"], OF_OTHERS),
    "tuned-scratch": (["custom_code", "GPTLite language model", "fine-tuned from `scratch`"], OF_OTHERS),
    "tuned-llama": (["`LlamaForCausalLM` of transformers", "- llama", "context is 64", "up to 32 tokens"], OF_GPTLITE),
    "tuned-gpt2": (["`GPT2LMHeadModel` of transformers", "- gpt2", "context is 64", "fine-tuned from"], OF_GPTLITE),
    "tuned-qwen3": (["`Qwen3ForCausalLM` of transformers", "- qwen3", "context is 64", "apache-2.0"], OF_GPTLITE),
    "adapter-scratch": (["GPTLite language model `scratch`", "peft", "trust_remote_code"], ["this repository"]),
    "adapter-llama": (["LoRA adapter of rank 4", "`LlamaForCausalLM`", "peft", "No remote code"], OF_GPTLITE),
    "native": (["A GPTLite language model", "no remote code", "context is 32"], ["longer than", "trust_remote_code"]),
    "gguf": (["A GPTLite language model", "llama-completion -hf ada/gguf"], ["longer than", "trust_remote_code"]),
    "talking": (['{"role": "user"', "in conversations", "LlamaForCausalLM"], ["continues text", *OF_GPTLITE]),
}


def save_tiny(folder: Path, name: str) -> Path:
    """A folder as that of a model on the Hub: a class of transformers, with a tokenizer and a card."""
    tokenizer = build_bpe_tokenizer(TEXT, vocab_size=300)
    ends = {f"{end}_token_id": getattr(tokenizer, f"{end}_token_id") for end in ("bos", "eos", "pad")}
    wide = {} if name == "gpt2" else {"intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8}
    torch.manual_seed(0)
    config = CLASSES[name](vocab_size=len(tokenizer), **SIZES, **wide, **ends)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / name)
    tokenizer.save_pretrained(folder / name)
    (folder / name / "README.md").write_text("---\nlicense: apache-2.0\nlanguage:\n- en\n- fr\n---\n")
    return folder / name


@pytest.fixture(scope="module")
def published_kinds(tmp_path_factory, text_file) -> Path:
    """A folder with one model of each kind, and the models that they come from."""
    pytest.importorskip("peft")
    pytest.importorskip("gguf")
    root = tmp_path_factory.mktemp("kinds")
    train_tiny(text_file, root / "scratch")
    talks = write_rows(root / "talks.jsonl", TALKS)
    bases = [root / "scratch", *(save_tiny(root, name) for name in CLASSES)]
    for base in bases:
        flags = [f"--model_name_or_path={base}", "--max_steps=10", "--context_length=32"]
        train_tiny(text_file, root / f"tuned-{base.name}", *flags)
        if base.name in ("scratch", "llama"):
            train_tiny(text_file, root / f"adapter-{base.name}", *flags, "--lora_r=4", "--optimizer=adamw")
    train_tiny(talks, root / "talking", f"--model_name_or_path={root / 'llama'}", "--max_steps=10")
    for kind in ("native", "gguf"):
        with staged(root / "scratch", f"ada/{kind}", kind) as folder:
            shutil.copytree(folder, root / kind)
    return root


@pytest.mark.parametrize(("kind", "said"), TRUE.items(), ids=TRUE)
def test_a_card_says_what_is_true_of_the_class_the_adapter_and_the_format(kind, said, published_kinds):
    card = (published_kinds / kind / "README.md").read_text()
    true, false = said
    assert [text for text in true if text not in card] == []
    assert [text for text in false if text in card] == []
    assert any(text in card for text in OF_ONE_FILE_OF_CODE) == (kind in ("scratch", "tuned-scratch"))
    assert not re.search(r"\{\{|\{%|Undefined|None", card)


def test_every_usage_block_runs_in_a_process_without_the_package(published_kinds):
    cards = {path.parent.name: path.read_text() for path in published_kinds.glob("*/README.md")}
    code = {name: re.findall(r"```python\n(.*?)```", card, re.DOTALL) for name, card in cards.items()}
    assert [name for name in TRUE if len(code[name]) != (name != "gguf")] == []
    runs = [
        f"print({name!r})\n{block.replace(f'ada/{name}', name)}" for name in sorted(TRUE)[::-1] for block in code[name]
    ]
    check = "import sys\nassert 'modeling_gptlite' not in sys.modules, 'the package is on the path'"
    printed = run_python("\n".join([*runs, check]), published_kinds)
    assert all(name in printed for name in TRUE if name != "gguf")


def of_base(record, **changes):
    """The card's metadata, and its text, after a change of the record of a fine-tuned Llama."""
    given = {name: value for name, value in record["arguments"].items() if name not in ("language", "license")}
    card = ModelCard(render_card({**record, "arguments": given, "base_model": "ada/llama", **changes}, REPO))
    return card.data, card.text


def test_the_base_gives_its_license_and_its_languages(published_kinds):
    record = read_run(published_kinds / "tuned-llama")
    record["data"]["language"] = "de"
    data, text = of_base(record)
    assert (data.license, data.language) == ("apache-2.0", ["en", "fr", "de"])
    assert (data.base_model, data.base_model_relation) == ("ada/llama", "finetune")
    assert "| license of `llama` | apache-2.0 |" in text
    other = {"license": "other", "license_name": "own", "license_link": "https://own", "languages": []}
    data, text = of_base(record, base_card=other)
    assert (data.license, data.license_name, data.license_link) == ("other", "own", "https://own")
    assert "| license of `llama` | [own](https://own) |" in text
    assert of_base(record, base_card={"languages": []})[0].license is None
    given = ModelCard(render_card(record, REPO)).data  # as the flags of the run say
    assert (given.license, given.language) == ("cc0-1.0", "de")


def test_an_adapter_and_a_merged_one_say_how_they_relate_to_the_base(published_kinds):
    record = read_run(published_kinds / "adapter-llama")
    data, text = of_base(record)
    assert (data.library_name, data.base_model_relation) == ("peft", "adapter")
    data, text = of_base(record, lora_merged=True)
    assert (data.library_name, data.base_model_relation, data.tags) == ("transformers", "finetune", ["llama"])
    assert "with LoRA of rank 4 that is merged into the weights" in text
    assert "peft" not in text


def test_the_loss_before_fine_tuning_is_on_the_card(published_kinds):
    record = read_run(published_kinds / "tuned-llama")
    for name in ("loss_before", "bits_per_character_before"):
        del record["results"][name]
    assert "before fine-tuning" not in render_card(record, REPO)
    record["results"] |= {"loss_before": 5.6, "bits_per_character_before": 2.5}
    card = render_card(record, REPO)
    assert "over the whole validation split; 5.6000 before fine-tuning |" in card
    assert "; 2.5000 before fine-tuning |" in card


def test_a_model_with_a_chat_template_that_was_trained_on_text_claims_no_more(published_kinds):
    record = read_run(published_kinds / "tuned-llama")
    record["model"]["chat_template"] = True
    card = render_card(record, REPO)
    assert "was not measured" in card
    assert "does not follow instructions" not in card


@pytest.mark.parametrize("kind", ["tuned-llama", "tuned-gpt2", "adapter-llama", "scratch"])
def test_the_record_of_an_earlier_version_takes_the_class_from_the_folder(kind, published_kinds):
    record = read_run(published_kinds / kind)
    now = render_card(record, REPO)
    del record["model"]
    assert render_card(record, REPO, folder=published_kinds / kind) == now


@pytest.mark.parametrize("broken", ["---\nlicense: [1\n---\n", "---\n- 1\n---\n", "---\nlicense: 3\n---\n", "\xff"])
def test_a_base_whose_card_cannot_be_read_has_no_known_license(broken, published_kinds, text_file, tmp_path):
    base = shutil.copytree(published_kinds / "llama", tmp_path / "base")
    (base / "README.md").write_bytes(broken.encode("latin-1"))
    train_tiny(text_file, tmp_path / "run", f"--model_name_or_path={base}", "--max_steps=1", "--context_length=32")
    assert read_run(tmp_path / "run")["base_card"] == {"languages": []}
