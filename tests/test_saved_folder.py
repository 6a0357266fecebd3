"""The folder that a run leaves: what is in it, and that a process without this package gets the same model from it."""

import json

import pytest
import torch
from helpers import FOLDER_FILES, TEXT, run_python
from transformers import AutoModelForCausalLM, AutoTokenizer

import modeling_gptlite  # noqa: F401  registers the classes


def logits_here(folder):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return model(**tokenizer("12 green bottles", return_tensors="pt")).logits


def test_it_holds_what_the_hub_needs_and_no_pickle(trained):
    assert {path.name for path in trained.iterdir() if path.is_file()} == FOLDER_FILES
    assert not list(trained.rglob("training_args.bin"))


def test_the_tokenizer_has_the_class_that_transformers_4_knows_too(trained):
    for folder in (trained, *trained.glob("checkpoint-*")):
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        assert config["tokenizer_class"] == "PreTrainedTokenizerFast", folder


def test_a_fresh_process_without_the_package_gives_the_same_logits(trained, tmp_path):
    torch.save(logits_here(trained), tmp_path / "logits.pt")
    printed = run_python(
        f"""
import sys, torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
folder = {str(trained)!r}
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
assert "modeling_gptlite" not in sys.modules, "the package is on the path"
with torch.no_grad():
    inputs = tokenizer("12 green bottles", return_tensors="pt")
    assert torch.equal(model(**inputs).logits, torch.load("logits.pt"))
    hidden = AutoModel.from_pretrained(folder, trust_remote_code=True)(**inputs).last_hidden_state
    assert torch.equal(model.lm_head(hidden), model(**inputs).logits)
print(type(AutoConfig.from_pretrained(folder, trust_remote_code=True)).__name__)
""",
        tmp_path,
    )
    assert printed.strip() == "GPTLiteConfig"


@pytest.mark.parametrize("head", ["SequenceClassification", "TokenClassification", "QuestionAnswering"])
def test_the_task_heads_load_without_the_package(trained, tmp_path, head):
    run_python(
        f"""
import torch
from transformers import AutoModelFor{head}
model = AutoModelFor{head}.from_pretrained({str(trained)!r}, trust_remote_code=True)
model(torch.tensor([[1, 2, 3]]))
model.save_pretrained("again")
assert type(AutoModelFor{head}.from_pretrained("again", trust_remote_code=True)).__name__ == "GPTLiteFor{head}"
""",
        tmp_path,
    )


def test_the_pipeline_writes_past_the_context_without_the_package(trained, tmp_path):
    printed = run_python(
        f"""
import json
from transformers import pipeline
generate = pipeline("text-generation", model={str(trained)!r}, trust_remote_code=True)
outputs = generate(["12 green", "3"], batch_size=2, max_new_tokens=100, return_tensors=True)
print(json.dumps([output[0]["generated_token_ids"] for output in outputs]))
""",
        tmp_path,
    )
    tokenizer = AutoTokenizer.from_pretrained(trained)
    for ids, prompt in zip(json.loads(printed.splitlines()[-1]), ["12 green", "3"], strict=True):
        ids = [token for token in ids if token != tokenizer.pad_token_id]
        assert tokenizer.decode(ids).startswith(prompt)
        assert len(ids) > len(prompt) + 90  # a model this young writes the odd padding token


def test_a_stranger_without_trust_is_told_of_the_flag(trained, tmp_path):
    printed = run_python(
        f"""
from transformers import AutoModelForCausalLM
try:
    AutoModelForCausalLM.from_pretrained({str(trained)!r}, trust_remote_code=False)
except ValueError as error:
    print(error)
""",
        tmp_path,
    )
    assert "trust_remote_code=True" in printed


def test_a_model_loaded_from_the_folder_carries_its_code_along(trained, tmp_path):
    run_python(
        f"""
from transformers import AutoModelForCausalLM, AutoTokenizer
AutoModelForCausalLM.from_pretrained({str(trained)!r}, trust_remote_code=True).save_pretrained("again")
AutoTokenizer.from_pretrained({str(trained)!r}).save_pretrained("again")
""",
        tmp_path,
    )
    again = tmp_path / "again"
    assert {"configuration_gptlite.py", "modeling_gptlite.py"} <= {path.name for path in again.iterdir()}
    assert json.loads((again / "config.json").read_text())["auto_map"].keys() >= {"AutoConfig", "AutoModel"}
    assert torch.equal(logits_here(again), logits_here(trained))


def test_checkpoints_load_like_the_final_folder(trained, tmp_path):
    checkpoint = next(trained.glob("checkpoint-*"))
    run_python(
        f"""
from transformers import AutoModelForCausalLM
AutoModelForCausalLM.from_pretrained({str(checkpoint)!r}, trust_remote_code=True)
""",
        tmp_path,
    )


def test_a_ten_line_trainer_script_fine_tunes_the_folder(trained, tmp_path):
    (tmp_path / "other.txt").write_text("7 bottles fall on the green wall.\n" * 40)
    script = f"""
from datasets import Dataset
from transformers import (AutoModelForCausalLM, AutoTokenizer, DataCollatorForLanguageModeling, Trainer,
                          TrainingArguments)
tokenizer = AutoTokenizer.from_pretrained({str(trained)!r})
model = AutoModelForCausalLM.from_pretrained({str(trained)!r}, trust_remote_code=True)
ids = tokenizer(open("other.txt").read())["input_ids"]
data = Dataset.from_dict({{"input_ids": [ids[i : i + 32] for i in range(0, len(ids) - 32, 32)]}})
arguments = TrainingArguments("tuned", use_cpu=True, num_train_epochs=3, learning_rate=1e-2, logging_steps=1)
trainer = Trainer(model, arguments, train_dataset=data, processing_class=tokenizer,
                  data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False))
trainer.train()
trainer.save_model()
losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
print("losses", losses[0], losses[-1])
"""
    printed = run_python(script, tmp_path)
    first, last = map(float, printed.split("losses")[-1].split())
    assert last < 0.8 * first
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "tuned").num_parameters() > 0


def test_run_json_tells_what_was_done_and_names_no_place(trained):
    run = json.loads((trained / "run.json").read_text())
    assert run["arguments"]["max_steps"] == 20
    assert run["arguments"]["train_file"] == ["bottles.txt"]
    assert run["results"]["steps"] == 20
    assert run["finished"] is True
    assert (
        run["data"]["train_tokens"] + run["data"]["validation_tokens"]
        == run["data"]["train_characters"] + (run["data"]["validation_characters"])
    )
    assert {"torch", "transformers"} <= run["environment"]["versions"].keys()
    assert str(trained.parent) not in json.dumps(run)


def test_run_json_holds_the_loss_of_the_saved_weights(trained):
    from modeling_gptlite.data import windows as data
    from modeling_gptlite.training import metrics
    from tokenization import encode_corpus

    run = json.loads((trained / "run.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(trained)
    ids = encode_corpus(TEXT[int(len(TEXT) * 0.9) :], tokenizer)
    model = AutoModelForCausalLM.from_pretrained(trained)
    loss = metrics.evaluate_loss(model, data.EvaluationWindows(ids, 32))
    assert loss == pytest.approx(run["results"]["loss"], abs=1e-6)


def test_the_saved_config_keeps_the_cache_on(trained):
    assert json.loads((trained / "config.json").read_text())["use_cache"] is True


def test_sampling_defaults_stop_nowhere(trained):
    settings = json.loads((trained / "generation_config.json").read_text())
    assert settings["do_sample"] is True
    assert "eos_token_id" not in settings
