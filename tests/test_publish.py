"""Publishing a finished folder: as gptlite or native, branches and tags, dry runs, and a Space."""

import re
import shutil

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
    save_model,
    saved_logits,
    tiny_model,
)
from huggingface_hub import ModelCard

from modeling_gptlite.runs.publish import publish
from scripts import push_to_hub
from tokenization import build_char_tokenizer


def test_a_dry_run_lists_sizes_and_touches_nothing(trained, hub, capsys):
    out = push(trained, "--dry_run", capsys=capsys)
    size = (trained / "model.safetensors").stat().st_size
    assert f"{size:>12,}  model.safetensors" in out
    assert set(re.findall(r"^ +[\d,]+  (\S+)$", out, re.M)) == FOLDER_FILES
    assert not hub.requests


def test_branch_tag_and_pull_request(trained, hub, capsys):
    push(trained, "--private", "--revision=wild", "--tag=v1", capsys=capsys)
    assert hub.repo(REPO).private
    assert published(hub, revision="wild") == published(hub, revision="v1") == FOLDER_FILES
    assert not published(hub)
    out = push(trained, "--create_pr", capsys=capsys)
    assert published(hub, revision="refs/pr/1") == FOLDER_FILES
    assert not published(hub)
    assert "discussions/1" in out


# ---- Native ---------------------------------------------------------------------------------------------------------


def test_a_native_push_needs_no_remote_code_and_gives_the_same_logits(trained, hub, tmp_path, capsys):
    push(trained, "--as=native", capsys=capsys)
    assert published(hub) == FOLDER_FILES - {"configuration_gptlite.py", "modeling_gptlite.py"}
    torch.save(saved_logits(trained), tmp_path / "logits.pt")
    run_python(
        f"""
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model, tokenizer = AutoModelForCausalLM.from_pretrained({REPO!r}), AutoTokenizer.from_pretrained({REPO!r})
assert type(model).__name__ == "Qwen3ForCausalLM"
with torch.no_grad():
    logits = model(**tokenizer("12 green bottles", return_tensors="pt")).logits
torch.testing.assert_close(logits, torch.load("logits.pt"), atol=1e-5, rtol=1e-5)
""",
        tmp_path,
    )
    card = ModelCard(hub.repo(REPO).files()["README.md"].decode())
    assert card.data.tags == ["gptlite"]
    assert "no remote code" in card.text


def test_a_native_push_takes_the_code_of_an_earlier_one_away(trained, hub, capsys):
    push(trained, capsys=capsys)
    push(trained, "--as=native", capsys=capsys)
    assert published(hub) == FOLDER_FILES - {"configuration_gptlite.py", "modeling_gptlite.py"}


def test_a_model_that_cannot_be_native_says_why(hub, tmp_path, capsys):
    tiny_model("classic-10m").save_pretrained(tmp_path / "model")  # 65 characters, 32 wide, and a head bias
    build_char_tokenizer(TEXT).save_pretrained(tmp_path / "model")
    refused(
        push_to_hub.main,
        f"--model={tmp_path / 'model'}",
        f"--repo_id={REPO}",
        "--as=native",
        capsys=capsys,
        told=["no bias", "65", "32"],
    )
    assert not hub.seen("POST", "")


# ---- GGUF ------------------------------------------------------------------------------------------------------------


GGUF_FILES = {"bottles-F32.gguf", "bottles-F16.gguf", "bottles-Q8_0.gguf"}


def test_a_gguf_push_has_each_precision_in_the_root_and_a_card_with_the_command(trained, hub, tmp_path, capsys):
    gguf = pytest.importorskip("gguf")
    push(trained, "--as=gguf", capsys=capsys)
    assert published(hub) == GGUF_FILES | {"README.md", "loss.png", "run.json", "samples.md"}
    (tmp_path / "model.gguf").write_bytes(hub.repo(REPO).files()["bottles-Q8_0.gguf"])
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    assert [fields[f"general.{name}"].contents() for name in ("name", "license")] == ["bottles", "cc0-1.0"]
    card = ModelCard(hub.repo(REPO).files()["README.md"].decode())
    assert (card.data.library_name, card.data.tags) == ("gguf", ["gptlite", "gguf"])
    assert f"ollama run hf.co/{REPO}\n" in card.text
    assert "trust_remote_code" not in card.text
    assert "from transformers import" not in card.text


def test_a_gguf_push_without_a_record_has_a_card_of_its_own(trained, hub, tmp_path, capsys):
    pytest.importorskip("gguf")
    shutil.copytree(trained, tmp_path / "model", ignore=shutil.ignore_patterns("checkpoint-*", "run.json"))
    push(tmp_path / "model", "--as=gguf", capsys=capsys)
    assert f"ollama run hf.co/{REPO}\n" in hub.repo(REPO).files()["README.md"].decode()


def test_gguf_files_do_not_take_the_place_of_a_model(trained, hub, capsys):
    pytest.importorskip("gguf")
    push(trained, capsys=capsys)
    argv = [f"--model={trained}", f"--repo_id={REPO}", "--as=gguf"]
    refused(push_to_hub.main, *argv, capsys=capsys, told=[REPO, "holds a model", "a repository of their own"])
    assert published(hub) == FOLDER_FILES


def test_a_model_that_llama_cpp_cannot_compute_is_not_pushed(hub, tmp_path, capsys):
    pytest.importorskip("gguf")
    save_model(tmp_path / "model", "nanogpt-10m")
    argv = [f"--model={tmp_path / 'model'}", f"--repo_id={REPO}", "--as=gguf"]
    refused(push_to_hub.main, *argv, capsys=capsys, told=["as gguf", "gelu_new"])
    assert not hub.requests


# ---- The Space ------------------------------------------------------------------------------------------------------


def test_a_space_is_pushed_that_loads_the_model(trained, hub, capsys):
    push(trained, "--space=ada/bottles-demo", capsys=capsys)
    files = hub.repo("ada/bottles-demo", kind="space").files()
    assert b"[load('ada/bottles')]" in files["app.py"]
    card = ModelCard(files["README.md"].decode())
    assert (card.data.sdk, card.data.app_file, card.data.models) == ("gradio", "app.py", [REPO])
    assert b"transformers" in files["requirements.txt"]


ELSEWHERE = ["--as=gguf", "--revision=wild", "--create_pr"]  # main does not get a model that the Space could load


@pytest.mark.parametrize("flag", ELSEWHERE)
def test_a_space_without_a_model_to_load_is_refused_before_anything_is_sent(flag, trained, hub, capsys):
    argv = [f"--model={trained}", f"--repo_id={REPO}", "--space=ada/demo", flag]
    refused(push_to_hub.main, *argv, capsys=capsys, told=[REPO, "main branch", "--space_sdk static"])
    assert not hub.requests


@pytest.mark.parametrize("flag", ELSEWHERE)
def test_a_space_that_holds_the_model_goes_with_every_push(flag, trained, hub, capsys):
    if flag == "--as=gguf":
        pytest.importorskip("gguf")
    assert "README.md" in push(trained, "--dry_run", "--space=ada/demo", "--space_sdk=static", flag, capsys=capsys)


@pytest.mark.parametrize(
    ("content", "told"), [("{", "not JSON"), ("[]", "JSON object"), ('{"results": 3}', "not the record of a run")]
)
def test_a_damaged_record_is_refused_before_anything_is_sent(content, told, trained, hub, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "model", ignore=shutil.ignore_patterns("checkpoint-*"))
    (tmp_path / "model" / "run.json").write_text(content)
    argv = [f"--model={tmp_path / 'model'}", f"--repo_id={REPO}"]
    refused(push_to_hub.main, *argv, capsys=capsys, told=["run.json", told])
    assert not hub.requests


def test_a_model_is_published_from_python(trained, hub):
    listed = []
    commit = publish(trained, REPO, kind="native", tag="v1", report=listed.append)
    assert commit.oid == commits(hub)[0].oid
    assert published(hub, revision="v1") == FOLDER_FILES - {"configuration_gptlite.py", "modeling_gptlite.py"}
    assert "README.md" in listed[0]
