"""The wheel: what it holds, and that the installed command works in an empty folder."""

import os
import shutil
import subprocess
import sys
import zipfile

import pytest
from helpers import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, because setuptools leaves its build folder beside the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    parts = ["modeling_gptlite", "tokenization", "scripts", "recipes"]
    for part in parts:
        shutil.copytree(ROOT / part, folder / "source" / part, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder]
    build = [sys.executable, "-m", "pip", "wheel", *options, folder / "source"]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def gptlite(wheel, tmp_path_factory):
    """Runs the command of an installation that is not this clone."""
    folder = tmp_path_factory.mktemp("installed")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", folder, wheel]
    subprocess.run(install, check=True)
    env = os.environ | {"PYTHONPATH": str(folder)}

    def call(*argv, cwd):
        command = [folder / "bin" / "gptlite", *argv]
        done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call


def test_the_wheel_holds_the_packages_and_their_data_and_nothing_else(wheel):
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {f"gptlite/{path.name}" for path in ROOT.glob("scripts/*.py")}
    expected |= {f"modeling_gptlite/recipes/{path.name}" for path in ROOT.glob("recipes/*.yaml")}
    for path in [*ROOT.glob("modeling_gptlite/**/*"), *ROOT.glob("tokenization/*")]:
        if path.is_file() and path.parent.name != "__pycache__":
            expected.add(str(path.relative_to(ROOT)))
    assert held == expected


def test_the_template_of_the_card_is_at_the_top_of_the_repository():
    assert (ROOT / "model_card.md").read_text() == (ROOT / "modeling_gptlite/runs/model_card.md").read_text()


def test_the_installed_command_trains_and_generates_in_an_empty_folder(gptlite, here):
    tiny = '{"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "max_position_embeddings": 16}'
    small = ["--max_steps", "2", "--eval_steps", "2", "--save_steps", "2", "--sample_length", "5"]
    gptlite(
        "train",
        "--config",
        "quickstart",
        "--dataset",
        "python-docs",
        "--short_context",
        "8",
        "--model_overrides",
        tiny,
        *small,
        cwd=here,
    )
    assert "# quickstart" in (here / "out" / "quickstart" / "README.md").read_text()
    text = gptlite("generate", "--model", "out/quickstart", "--prompt", "the ", "--max_new_tokens", "5", cwd=here)
    assert text.startswith("the ")
    assert {path.name for path in here.iterdir()} == {"out"}


def test_the_installed_command_knows_its_version_and_its_commands(gptlite, here):
    assert gptlite("--version", cwd=here).startswith("gptlite 0.")
    for name in ("train", "generate", "evaluate", "convert", "push", "demo"):
        assert f"\ngptlite {name} " in gptlite(name, "--help", cwd=here)
