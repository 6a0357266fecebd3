"""The files of a Space run without the repository."""

import subprocess
import sys

import pytest
from helpers import ROOT
from huggingface_hub import ModelCard

from modeling_gptlite.page import space
from modeling_gptlite.page.space import REQUIREMENTS, PageError, space_files


def test_the_app_of_a_space_loads_its_model_with_the_package_that_comes_with_it(trained, tmp_path):
    pytest.importorskip("gradio")
    for name, content in space_files("gradio", trained, str(trained)).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    code = (
        "from modeling_gptlite.page import app\n"
        "app.launch = lambda models: print(app.__file__, models[0].label)\n"
        "import app\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.stdout == f"{tmp_path / 'modeling_gptlite' / 'page' / 'app.py'} bottles\n", result.stderr


def test_a_static_space_holds_the_page_and_the_model(trained):
    pytest.importorskip("onnxscript")
    files = space_files("static", trained, "ada/bottles")
    card = ModelCard(files["README.md"].decode())
    assert (card.data.sdk, card.data.app_file, card.data.models) == ("static", "index.html", ["ada/bottles"])
    assert {"index.html", "static.js", "model/onnx/model.onnx", "model/tokenizer.json"} <= files.keys()


@pytest.mark.parametrize(("sdk", "license"), [("gradio", "mit"), ("static", None)])
def test_only_a_space_that_does_not_hold_the_model_has_a_license_of_its_own(sdk, license, tmp_path, monkeypatch):
    monkeypatch.setattr(space, "write_website", lambda model, folder: None)
    card = ModelCard(space_files(sdk, tmp_path, "ada/bottles")["README.md"].decode())
    assert card.data.license == license


@pytest.mark.parametrize("is_adapter", [True, False])
def test_a_space_for_an_adapter_installs_peft(is_adapter, tmp_path):
    (tmp_path / ("adapter_config.json" if is_adapter else "config.json")).touch()
    requirements = space_files("gradio", tmp_path, "ada/bottles")["requirements.txt"].decode()
    assert ("peft" in requirements.splitlines()) == is_adapter


def test_an_unknown_kind_of_space_is_refused(trained):
    with pytest.raises(PageError, match="gradio or static, got 'docker'"):
        space_files("docker", trained, "ada/bottles")


def test_a_space_asks_for_the_versions_of_the_package():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert all(line in project for line in REQUIREMENTS.splitlines())
