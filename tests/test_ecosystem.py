"""Tools around transformers that take the model as they take any other: evaluation, quantisation, servers, search."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request

import pytest
import torch
from helpers import ANSWERS, ROOT, TALKS, TEXT, free_port, run_python, write_rows
from transformers import AutoModelForCausalLM, AutoTokenizer

from modeling_gptlite import GPTLiteConfig, GPTLiteForCausalLM
from modeling_gptlite.interchange import to_native


LABELS = {"green bottles": "good", "should fall": "bad"}
QUESTIONS = [
    {"question": f"{n} green", "choices": [" bottles", " zebras"], "answer": 0, "words": " bottles standing"}
    for n in range(20, 28)
]


# ---- Evaluation -----------------------------------------------------------------------------------------------------


def test_lm_evaluation_harness_scores_the_model(trained, tmp_path):
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.tasks import TaskManager

    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, QUESTIONS)))
    common = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(tmp_path / "questions.jsonl")}}}
    for name, kind, target in (("bottles", "multiple_choice", "answer"), ("wall", "loglikelihood_rolling", "words")):
        task = {"task": name, "output_type": kind, "test_split": "test", "doc_to_target": target, **common}
        if kind == "multiple_choice":
            task |= {"doc_to_text": "question", "doc_to_choice": "choices", "target_delimiter": ""}
            task["metric_list"] = [{"metric": "acc"}]
        else:
            task |= {"doc_to_text": "", "metric_list": [{"metric": "bits_per_byte"}]}
        (tmp_path / f"{name}.yaml").write_text(json.dumps(task))  # JSON is YAML, too
    results = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(trained), "device": "cpu", "dtype": "float32"},
        tasks=["bottles", "wall"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        batch_size=4,
        bootstrap_iters=0,
    )["results"]
    assert results["bottles"]["acc,none"] == 1.0

    model, tokenizer = AutoModelForCausalLM.from_pretrained(trained), AutoTokenizer.from_pretrained(trained)
    ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer(QUESTIONS[0]["words"]).input_ids]])
    with torch.no_grad():
        log_p = model(ids).logits[0, :-1].log_softmax(-1)
    bits = -log_p.gather(-1, ids[0, 1:, None]).sum().item() / len(QUESTIONS[0]["words"]) / 0.6931471805599453
    assert results["wall"]["bits_per_byte,none"] == pytest.approx(bits, rel=1e-4)


@pytest.mark.parametrize("form", ["as saved", "native"])
def test_lighteval_scores_the_model_as_the_page_says(form, trained, tmp_path):
    pytest.importorskip("lighteval")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(trained), AutoTokenizer.from_pretrained(trained)
    if form == "native":
        to_native(model).save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")
    else:
        shutil.copytree(trained, tmp_path / "model")
    texts = [f"{n} green bottles" for n in range(20, 28)]
    dataset = tmp_path / "cimec" / "lambada"  # a folder is preferred to the dataset of that name on the Hub
    dataset.mkdir(parents=True)
    write_rows(dataset / "test.jsonl", [{"text": text} for text in texts])
    splits = "[{split: test, path: test.jsonl}]"
    (dataset / "README.md").write_text(f"---\nconfigs: [{{config_name: plain_text, data_files: {splits}}}]\n---\n")
    arguments = "model_name=model" + (",trust_remote_code=True" if form == "as saved" else "")
    run_python(
        f"""
import types, requests
requests.get = lambda url: types.SimpleNamespace(status_code=404)  # lighteval downloads a table when it is imported
from lighteval.__main__ import app
app(["accelerate", "{arguments}", "lambada:standard"])
""",
        tmp_path,
        HOME=str(tmp_path),  # where it keeps its answers
    )
    (result,) = (tmp_path / "results").rglob("*.json")
    log_p = []
    for query, word in (text.rsplit(" ", 1) for text in texts):
        context, target = tokenizer(query).input_ids, tokenizer(f" {word}").input_ids
        with torch.no_grad():
            logits = model(torch.tensor([context + target])).logits[0, len(context) - 1 : -1]
        log_p.append(logits.log_softmax(-1).gather(-1, torch.tensor(target)[:, None]).sum())
    perplexity = torch.stack(log_p).mean().neg().exp().item()
    assert json.loads(result.read_text())["results"]["lambada:standard|0"]["ppl"] == pytest.approx(perplexity, rel=1e-4)


# ---- Quantisation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", ["Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"])
def test_torchao_quantises_on_loading_and_the_text_goes_past_the_context(config, trained):
    quantization = pytest.importorskip("torchao.quantization")
    from transformers import TorchAoConfig

    plain, tokenizer = AutoModelForCausalLM.from_pretrained(trained), AutoTokenizer.from_pretrained(trained)
    settings = TorchAoConfig(getattr(quantization, config)())
    model = AutoModelForCausalLM.from_pretrained(trained, quantization_config=settings)
    linears = [m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "lm_head" not in name]
    assert all(type(linear.weight) is not torch.nn.Parameter for linear in linears)
    inputs = tokenizer(TEXT[:30], return_tensors="pt")
    with torch.no_grad():
        difference = model(**inputs).logits.softmax(-1) - plain(**inputs).logits.softmax(-1)
    assert 0 < difference.abs().max() < 0.1
    assert model.generate(**inputs, max_new_tokens=50, do_sample=False).shape[1] == 80


# ---- Assisted decoding ----------------------------------------------------------------------------------------------


def test_a_small_model_drafts_for_a_larger_one():
    draft, model = (
        GPTLiteForCausalLM(GPTLiteConfig.from_preset(name, vocab_size=68)).eval()
        for name in ("modern-1m", "modern-10m")
    )
    ids = torch.arange(10)[None]
    settings = {"max_new_tokens": 60, "do_sample": False}
    assert torch.equal(model.generate(ids, assistant_model=draft, **settings), model.generate(ids, **settings))


def test_a_good_draft_saves_forward_passes_of_the_large_model(trained):
    model = AutoModelForCausalLM.from_pretrained(trained)
    passes, forward = [], model.model.forward
    model.model.forward = lambda *args, **kwargs: passes.append(1) or forward(*args, **kwargs)
    draft = AutoModelForCausalLM.from_pretrained(trained)  # as good as can be
    ids = AutoTokenizer.from_pretrained(trained)("12 green", return_tensors="pt").input_ids
    model.generate(ids, assistant_model=draft, max_new_tokens=20, do_sample=False)
    assert len(passes) < 15


# ---- Servers --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(talking, tmp_path_factory):
    """`transformers serve`, which takes transformers' own classes only, in a process of its own: address and model."""
    for name in ("openai", "uvicorn", "fastapi"):
        pytest.importorskip(name)
    folder = tmp_path_factory.mktemp("server")
    to_native(AutoModelForCausalLM.from_pretrained(talking)).save_pretrained(folder / "native")
    AutoTokenizer.from_pretrained(talking).save_pretrained(folder / "native")
    port = free_port()
    command = [os.path.join(os.path.dirname(sys.executable), "transformers"), "serve", str(folder / "native")]
    command += ["--device=cpu", "--host=127.0.0.1", f"--port={port}"]
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=log, env=os.environ | {"HF_HOME": str(folder)}
        )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5).read()
                break
            except OSError:
                assert process.poll() is None, (folder / "log").read_text()
                time.sleep(0.2)
        yield address, str(folder / "native")
    finally:
        process.terminate()
        process.wait()


def test_transformers_serve_answers_as_openai_does(server):
    import openai

    address, model = server
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none")
    messages = [{"role": "user", "content": "31 green"}]
    answer = client.chat.completions.create(model=model, messages=messages, max_tokens=30, temperature=0)
    assert answer.choices[0].message.content.strip() == "bottles!"
    assert answer.choices[0].finish_reason == "stop"
    stream = client.chat.completions.create(model=model, messages=messages, max_tokens=30, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def test_transformers_chat_talks_to_it(server, tmp_path):
    address, model = server
    command = os.path.join(os.path.dirname(sys.executable), "transformers")
    result = subprocess.run(
        [command, "chat", model, address, "max_new_tokens=30", "do_sample=False"],
        input="31 green\n!exit\n",
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"HF_HUB_OFFLINE": "0"},  # its client refuses even this machine's address
        timeout=120,
    )
    assert "bottles!" in result.stdout, result.stderr


# ---- Apple silicon --------------------------------------------------------------------------------------------------


def test_mlx_lm_writes_the_same_greedy_text_as_transformers(trained, tmp_path):
    mlx_lm = pytest.importorskip("mlx_lm")
    native, tokenizer = to_native(AutoModelForCausalLM.from_pretrained(trained)), AutoTokenizer.from_pretrained(trained)
    native.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    inputs = tokenizer("12 green", return_tensors="pt")
    ids = native.generate(**inputs, max_new_tokens=24, do_sample=False)[0, inputs.input_ids.shape[1] :]
    model, mlx_tokenizer = mlx_lm.load(str(tmp_path))
    assert mlx_lm.generate(model, mlx_tokenizer, "12 green", max_tokens=24) == tokenizer.decode(ids)


# ---- Classification -------------------------------------------------------------------------------------------------


def test_the_pages_classifier_learns_and_loads_without_this_package(trained, tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs" / "fine_tuning.md").read_text(encoding="utf-8")
    (block,) = (b for b in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "ForSequenceClassification" in b)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    shutil.copytree(trained, tmp_path / "out" / "quickstart")
    write_rows(
        tmp_path / "reviews.jsonl",
        [{"text": f"{n} {text}", "label": label} for n in range(60) for text, label in LABELS.items()],
    )
    exec(block, {})
    assert "1.0" in capsys.readouterr().out.splitlines()
    printed = run_python(
        """
from transformers import pipeline
classify = pipeline("text-classification", model="out/reviews", trust_remote_code=True)
print([row["label"] for row in classify(["99 green bottles", "98 should fall"])], classify.model.config.id2label)
""",
        tmp_path,
    )
    assert printed.strip() == "['good', 'bad'] {0: 'bad', 1: 'good'}"


# ---- TRL ------------------------------------------------------------------------------------------------------------


def trl_settings(folder, **settings):
    defaults = {"max_steps": 20, "per_device_train_batch_size": 8, "learning_rate": 1e-2, "report_to": "none"}
    return {"output_dir": str(folder), "use_cpu": True, "bf16": False, "logging_steps": 5, **defaults, **settings}


@pytest.mark.parametrize("rows", [[{"text": line} for line in TEXT.splitlines()], ANSWERS, TALKS])
def test_trls_supervised_trainer_trains_the_model(rows, trained, tmp_path):
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    model, tokenizer = AutoModelForCausalLM.from_pretrained(trained), AutoTokenizer.from_pretrained(trained)
    settings = {}
    if "messages" in rows[0]:
        from modeling_gptlite.data.formats import CHAT_TEMPLATE

        tokenizer.chat_template, settings = CHAT_TEMPLATE, {"assistant_only_loss": True}
    args = trl.SFTConfig(**trl_settings(tmp_path, max_length=32, **settings))
    trainer = trl.SFTTrainer(model, args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[-1] < losses[0]


def test_trls_preference_trainer_trains_the_model(trained, tmp_path):
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    rows = [{"prompt": f"{n} green ", "chosen": "bottles!", "rejected": "wall,"} for n in range(64)]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(trained), AutoTokenizer.from_pretrained(trained)
    args = trl.DPOConfig(**trl_settings(tmp_path, max_length=32))
    trl.DPOTrainer(model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer).train()
    ids = tokenizer(["7 green bottles!", "7 green wall,"], return_tensors="pt", padding=True, padding_side="right")
    with torch.no_grad():
        log_p = model.cpu().eval()(**ids).logits.log_softmax(-1)[:, 7]
    assert log_p[0, tokenizer.convert_tokens_to_ids("b")] > log_p[1, tokenizer.convert_tokens_to_ids("w")]


def test_the_extra_of_the_messages_exists():
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras["finetune"] == ["peft", "trl"]
