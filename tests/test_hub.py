"""The Hub end to end, over HTTP to a server on this machine: push, load back by name, faults."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from helpers import (
    FOLDER_FILES,
    REPO,
    TEXT,
    commits,
    published,
    push,
    refused,
    run_python,
    saved_logits,
    tiny_model,
    train_tiny,
)
from hub_server import Fault
from hub_server import HubError as Refusal
from huggingface_hub import HfApi, ModelCard, snapshot_download
from transformers import AutoModelForCausalLM

from modeling_gptlite.hub import HubError, published_files
from scripts import push_to_hub
from tokenization import build_char_tokenizer


# ---- What a push publishes -------------------------------------------------------------------------------------------


def test_a_push_is_one_commit_of_exactly_the_files_that_loading_needs(trained, hub, capsys):
    push(trained, capsys=capsys)
    assert published(hub) == FOLDER_FILES
    assert len(commits(hub)) == 1
    config = json.loads(hub.repo(REPO).files()["config.json"])
    tokenizer = json.loads(hub.repo(REPO).files()["tokenizer_config.json"])
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"  # transformers 4 knows it, too
    heads = {f"AutoModelFor{head}" for head in ("SequenceClassification", "TokenClassification", "QuestionAnswering")}
    assert config["auto_map"].keys() == {"AutoConfig", "AutoModel", "AutoModelForCausalLM"} | heads


def test_a_repeated_push_makes_no_commit(trained, hub, capsys):
    push(trained, capsys=capsys)
    push(trained, capsys=capsys)
    assert len(commits(hub)) == 1


def test_a_push_keeps_the_pictures_and_gguf_files_of_others(trained, hub, capsys):
    push(trained, capsys=capsys)
    others = {"bottles-Q4_K_M.gguf", "photo.png"}
    for name in others:
        HfApi().upload_file(repo_id=REPO, path_or_fileobj=b"theirs", path_in_repo=name)
    push(trained, "--as=native", capsys=capsys)
    assert others <= published(hub)


def test_secrets_and_places_stay_at_home(trained, hub, tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(trained, folder)
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "pytorch_model.bin", "train.log", ".env"):
        (folder / name).write_bytes(b"hf_ada")
    push(folder, "--verbose", capsys=capsys)
    assert published(hub) == FOLDER_FILES
    for name, content in hub.repo(REPO).files().items():
        assert not any(secret in content for secret in (b"hf_ada", str(tmp_path).encode())), name


def test_a_path_of_this_machine_in_a_published_file_is_refused(trained, hub, tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(trained, folder)
    (folder / "generation_config.json").write_text(json.dumps({"from": f"{folder}/somewhere"}))
    refused(
        push_to_hub.main,
        f"--model={folder}",
        f"--repo_id={REPO}",
        capsys=capsys,
        told=["generation_config.json", "path"],
    )


def test_a_folder_of_save_pretrained_can_be_pushed(hub, tmp_path, capsys):
    tiny_model("modern-1m").save_pretrained(tmp_path / "model")
    build_char_tokenizer("abc").save_pretrained(tmp_path / "model")
    push(tmp_path / "model", capsys=capsys)
    card = ModelCard(hub.repo(REPO).files()["README.md"].decode())
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "text-generation")


def test_the_models_own_push_to_hub_publishes_what_loads(hub, tmp_path):
    tiny_model("classic-10m").push_to_hub(REPO)
    build_char_tokenizer(TEXT).push_to_hub(REPO)
    assert {"configuration_gptlite.py", "modeling_gptlite.py", "tokenizer.json"} <= published(hub)
    run_python(
        f"from transformers import AutoModelForCausalLM as M; M.from_pretrained({REPO!r}, trust_remote_code=True)",
        tmp_path,
    )


# ---- Loading back ---------------------------------------------------------------------------------------------------


def test_every_loader_gives_the_same_model_from_an_empty_cache(trained, hub, tmp_path, capsys):
    push(trained, capsys=capsys)
    torch.save(saved_logits(trained), tmp_path / "logits.pt")
    sha = commits(hub)[0].oid
    run_python(
        f"""
import os, sys, torch
from huggingface_hub import snapshot_download
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, pipeline
from transformers import AutoModelForQuestionAnswering, AutoModelForSequenceClassification
from transformers import AutoModelForTokenClassification
repo, sha = {REPO!r}, {sha!r}
tokenizer = AutoTokenizer.from_pretrained(repo, trust_remote_code=False)
inputs, expected = tokenizer("12 green bottles", return_tensors="pt"), torch.load("logits.pt")
def check(model):
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits.float(), expected)
AutoConfig.from_pretrained(repo, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(repo, trust_remote_code=True)
check(model)
check(AutoModelForCausalLM.from_pretrained(repo, revision=sha, trust_remote_code=True, dtype=torch.float32))
check(AutoModelForCausalLM.from_pretrained(snapshot_download(repo), trust_remote_code=True))
check(AutoModelForCausalLM.from_pretrained(repo, device_map="cpu", trust_remote_code=True))
AutoModel.from_pretrained(repo, trust_remote_code=True)
for head in (AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoModelForQuestionAnswering):
    head.from_pretrained(repo, trust_remote_code=True)(**inputs)
assert pipeline(model=repo, trust_remote_code=True)("12", max_new_tokens=60)[0]["generated_text"].startswith("12")
assert "modeling_gptlite" not in sys.modules
model.save_pretrained("tuned")
tokenizer.save_pretrained("tuned")
assert repo not in open("tuned/config.json").read()
check(AutoModelForCausalLM.from_pretrained("tuned", trust_remote_code=True))
""",
        tmp_path,
    )
    offline = f"""
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
inputs = AutoTokenizer.from_pretrained({REPO!r})("12 green bottles", return_tensors="pt")
with torch.no_grad():
    logits = AutoModelForCausalLM.from_pretrained({REPO!r}, trust_remote_code=True)(**inputs).logits
assert torch.equal(logits, torch.load("logits.pt"))
"""
    hub.stop()
    run_python(offline, tmp_path, HF_HUB_OFFLINE="1")


def test_a_model_in_a_subfolder_loads_with_the_code_at_the_root(trained, hub, tmp_path, capsys):
    push(trained, capsys=capsys)
    tiny_model("modern-1m").save_pretrained(tmp_path / "small")
    HfApi().upload_folder(repo_id=REPO, folder_path=tmp_path / "small", path_in_repo="small")
    code = f"m.from_pretrained({REPO!r}, subfolder='small', trust_remote_code=True)"
    run_python(f"from transformers import AutoModelForCausalLM as m; assert {code}.config.hidden_size == 32", tmp_path)


def test_without_trust_the_flag_is_named(trained, hub, tmp_path, capsys):
    push(trained, capsys=capsys)
    printed = run_python(
        f"""
from transformers import AutoModelForCausalLM
try:
    AutoModelForCausalLM.from_pretrained({REPO!r})
except ValueError as error:
    print(error)
""",
        tmp_path,
    )
    assert "trust_remote_code=True" in printed


# ---- While training -------------------------------------------------------------------------------------------------


def test_pushes_during_training_load_and_carry_the_card(text_file, hub, tmp_path):
    flags = ["--push_to_hub=true", f"--hub_model_id={REPO}", "--hub_always_push=true"]
    train_tiny(text_file, tmp_path / "run", *flags)
    log = commits(hub)
    assert log[0].title == "End of training"
    assert any(commit.title.startswith("Training in progress, step") for commit in log)
    for commit in log:
        names = set(hub.repo(REPO).files(commit.oid)) - {".gitattributes"}
        assert names == (FOLDER_FILES if commit is log[0] else FOLDER_FILES - {"loss.png", "run.json", "samples.md"})
        card = ModelCard(hub.repo(REPO).files(commit.oid)["README.md"].decode())
        assert card.data.pipeline_tag == "text-generation"
        (step,) = re.findall(r"those of step (\d+)", card.text)
        assert commit is log[0] or commit.title.endswith(f"step {step}")
    run_python(
        f"""
from transformers import AutoModelForCausalLM
for sha in {[commit.oid for commit in log]!r}:
    AutoModelForCausalLM.from_pretrained({REPO!r}, revision=sha, trust_remote_code=True)
""",
        tmp_path,
    )


def test_a_trainer_of_ones_own_pushes_from_python(text_file, hub, tmp_path):
    from modeling_gptlite.data.windows import RandomWindows
    from modeling_gptlite.training.trainer import CausalLMTrainer, CausalLMTrainingArguments
    from tokenization import encode_corpus

    tokenizer = build_char_tokenizer(TEXT)
    args = CausalLMTrainingArguments(
        str(tmp_path / "run"),
        max_steps=2,
        save_steps=1,
        eval_strategy="no",
        load_best_model_at_end=False,
        push_to_hub=True,
        hub_model_id=REPO,
    )
    windows = RandomWindows(encode_corpus(TEXT, tokenizer), 32, 2 * args.train_batch_size, seed=0)
    trainer = CausalLMTrainer(tiny_model("modern-1m"), args, train_dataset=windows, processing_class=tokenizer)
    trainer.train()
    trainer.push_to_hub()
    for commit in commits(hub):
        assert set(hub.repo(REPO).files(commit.oid)) - {".gitattributes"} == FOLDER_FILES - {
            "loss.png",
            "run.json",
            "samples.md",
        }


# ---- Faults and mistakes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        Fault("POST", "/commit/", "500"),
        Fault("POST", "/commit/", "drop"),
        Fault("PUT", ".*", "drop", times=10),
        Fault("POST", "/commit/", "drop_after_commit"),
    ],
    ids=lambda fault: f"{fault.kind} {fault.method}",
)
def test_a_push_that_breaks_off_leaves_the_old_commit_and_can_be_repeated(
    fault, trained, hub, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the client's retries
    folder = tmp_path / "model"
    shutil.copytree(trained, folder)
    push(folder, capsys=capsys)
    tiny = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        tiny.lm_head.weight += 1
    tiny.save_pretrained(folder)
    hub.faults.append(fault)
    argv = (f"--model={folder}", f"--repo_id={REPO}")
    refused(push_to_hub.main, *argv, capsys=capsys, told=["run the command again"])
    assert len(commits(hub)) == (2 if fault.kind == "drop_after_commit" else 1)
    hub.faults.clear()
    push(folder, capsys=capsys)
    assert len(commits(hub)) == 2
    assert hub.repo(REPO).files()["model.safetensors"] == (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("token", "repo_id", "told"),
    [
        ("hf_ada_old", REPO, "hf auth login"),
        ("hf_nobody", REPO, "hf auth login"),
        ("", REPO, "hf auth login"),
        ("hf_ada_read", REPO, "write permission"),
        ("hf_ada", "bob/bottles", "namespace of yours"),
        ("hf_ada", "not a name/at all", "USER/NAME"),
        ("hf_ada", "a/b/c", "USER/NAME"),
    ],
)
def test_a_refusal_of_the_hub_is_one_line_that_says_what_to_do(token, repo_id, told, trained, hub, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", token)
    err = refused(
        push_to_hub.main, f"--model={trained}", f"--repo_id={repo_id}", "--verbose", capsys=capsys, told=[told]
    )
    assert not token or token not in err
    assert not hub.repositories


@pytest.mark.parametrize(
    ("status", "told"),
    [(402, "PRO is needed for that."), (429, "run the command again"), (503, "run the command again")],
)
def test_a_push_is_to_be_repeated_only_if_the_answer_may_change(status, told, trained, hub, monkeypatch, capsys):
    handle = hub.handle

    def answer(request):
        is_space = request.path.endswith("/repos/create") and request.json.get("type") == "space"
        return Refusal(status, "PRO is needed for that.").answer if is_space else handle(request)

    monkeypatch.setattr(hub, "handle", answer)
    argv = [f"--model={trained}", f"--repo_id={REPO}", "--space=ada/demo"]
    err = refused(push_to_hub.main, *argv, capsys=capsys, told=[f"the Hub answered {status}", told])
    assert ("again" in err) == (status != 402)


def test_no_network_is_told_in_one_line(trained, hub, capsys):
    hub.stop()
    refused(push_to_hub.main, f"--model={trained}", f"--repo_id={REPO}", capsys=capsys, told=["cannot be reached"])


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--as=onnx"], ["--as", "native", "onnx"]),
        (["--model=nowhere"], ["nowhere", "config.json"]),
        (["--visibility=private"], ["--visibility"]),
    ],
)
def test_a_mistake_is_refused_before_anything_is_sent(argv, told, trained, hub, capsys):
    refused(push_to_hub.main, f"--model={trained}", f"--repo_id={REPO}", *argv, capsys=capsys, told=told)
    assert not hub.requests


def test_a_folder_without_weights_is_refused(trained, hub, tmp_path, capsys):
    shutil.copyfile(trained / "config.json", tmp_path / "config.json")
    refused(push_to_hub.main, f"--model={tmp_path}", f"--repo_id={REPO}", capsys=capsys, told=["model.safetensors"])


# ---- Files that are not what they seem -----------------------------------------------------------------------------


@pytest.fixture
def copied(trained, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("checkpoint-*"))
    return folder


@pytest.mark.parametrize("name", ["photo.png", "README.md", "model.safetensors"])
def test_a_link_that_leads_out_of_the_folder_is_refused_by_name(name, copied, tmp_path):
    (tmp_path / "secret.env").write_text("hf_ada")
    (copied / name).unlink(missing_ok=True)
    (copied / name).symlink_to(tmp_path / "secret.env")
    with pytest.raises(HubError, match=rf"{name} is a link to .*secret\.env"):
        published_files(copied)


def test_a_link_within_the_folder_is_followed(copied):
    (copied / "copy.png").symlink_to("loss.png")
    assert published_files(copied)["copy.png"].read_bytes() == (copied / "loss.png").read_bytes()


def test_a_snapshot_in_the_cache_of_the_hub_can_be_pushed(trained, hub, capsys):
    push(trained, capsys=capsys)
    snapshot = snapshot_download(REPO)
    push(snapshot, repo_id="ada/again", capsys=capsys)
    assert published(hub, "ada/again") == FOLDER_FILES


def test_a_link_to_the_blob_of_another_repository_is_refused(trained, hub, tmp_path, capsys):
    push(trained, capsys=capsys)
    push(trained, repo_id="ada/private", capsys=capsys)
    snapshot, other = Path(snapshot_download(REPO)), Path(snapshot_download("ada/private"))
    (snapshot / "loss.png").unlink()
    (snapshot / "loss.png").symlink_to((other / "loss.png").resolve())
    with pytest.raises(HubError, match=r"loss\.png is a link"):
        published_files(snapshot)


NOT_AS_NAMED = {
    "a card in Latin-1": ("README.md", lambda path: path.write_bytes(b"caf\xe9"), "README.md is not UTF-8: byte 0xe9"),
    "a configuration that is not JSON": ("config.json", lambda path: path.write_text("{"), "config.json is not JSON"),
    "a folder as a picture": ("more.png", lambda path: path.mkdir(), "more.png is not a file"),
    "a link to nothing": ("more.png", lambda path: path.symlink_to("nothing.png"), "more.png is not a file"),
    "an adapter of a list": ("adapter_config.json", lambda path: path.write_text("[]"), "does not name the base model"),
    "an adapter of a number": (
        "adapter_config.json",
        lambda path: path.write_text('{"base_model_name_or_path": 3}'),
        "does not name the base model",
    ),
}


@pytest.mark.parametrize(("name", "change", "message"), NOT_AS_NAMED.values(), ids=NOT_AS_NAMED)
def test_a_file_that_is_not_what_its_name_says_is_refused(name, change, message, copied):
    change(copied / name)
    with pytest.raises(HubError, match=message):
        published_files(copied)


def test_an_adapter_of_a_base_in_the_home_folder_is_told_to_publish_that_first(copied, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    adapter = {"base_model_name_or_path": str(tmp_path / "base")}
    (copied / "adapter_config.json").write_text(json.dumps(adapter))
    with pytest.raises(HubError, match="publish that model first"):
        published_files(copied)


def test_a_card_whose_metadata_the_hub_rejects_is_refused_in_one_line(copied, hub, capsys):
    (copied / "run.json").unlink()
    (copied / "README.md").write_text("---\nlicense: mit\nlicense: mit\n---\n")
    refused(push_to_hub.main, f"--model={copied}", f"--repo_id={REPO}", capsys=capsys, told=["README.md", "duplicated"])
