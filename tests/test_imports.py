"""The import direction of the packages, read off their syntax trees."""

import ast
import sys

import pytest
from helpers import ROOT


STDLIB = set(sys.stdlib_module_names) | {"pydoc_data"}
HUB_FILES = {"configuration_gptlite", "modeling_gptlite"}
# Each room: its files, the packages that it may import, and the other rooms.
ROOMS = {
    "configuration_gptlite": ("modeling_gptlite/configuration_gptlite.py", {"transformers", "huggingface_hub"}, set()),
    "modeling_gptlite": (
        "modeling_gptlite/modeling_gptlite.py",
        {"torch", "transformers"},
        {"configuration_gptlite"},
    ),
    "package": ("modeling_gptlite/__init__.py", {"transformers"}, HUB_FILES),
    "errors": ("modeling_gptlite/errors.py", set(), set()),
    "loading": (
        "modeling_gptlite/loading.py",
        {"huggingface_hub", "safetensors", "torch", "transformers"},
        {*HUB_FILES, "errors", "hub", "package"},
    ),
    "hub": ("modeling_gptlite/hub.py", {"huggingface_hub"}, {"errors"}),
    "tokenization": ("tokenization/*.py", {"tokenizers", "transformers", "numpy"}, set()),
    "data": ("modeling_gptlite/data/*.py", {"datasets", "numpy", "torch", "transformers"}, {"errors", "tokenization"}),
    "training": (
        "modeling_gptlite/training/*.py",
        {"accelerate", "huggingface_hub", "numpy", "peft", "sacrebleu", "safetensors", "torch", "transformers"},
        {"data", "errors", "hub"},
    ),
    "interchange": (
        "modeling_gptlite/interchange/*.py",
        {"gguf", "llama_cpp", "numpy", "onnx", "onnx_ir", "onnxruntime", "onnxscript"}
        | {"tokenizers", "torch", "transformers"},
        {*HUB_FILES, "errors", "loading", "tokenization"},
    ),
    "page": (
        "modeling_gptlite/page/*.py",
        {"gradio", "huggingface_hub", "torch", "transformers"},
        {"errors", "interchange", "loading", "package"},
    ),
    "engine": (
        "modeling_gptlite/engine/*.py",
        {"huggingface_hub", "numpy", "onnx", "onnxruntime", "torch", "transformers"},
        {*HUB_FILES, "data", "errors", "interchange", "loading"},
    ),
    "runs": (
        "modeling_gptlite/runs/*.py",
        {
            "accelerate",
            "huggingface_hub",
            "jinja2",
            "matplotlib",
            "numpy",
            "sacrebleu",
            "safetensors",
            "torch",
            "transformers",
            "yaml",
        },
        {
            *HUB_FILES,
            "data",
            "engine",
            "errors",
            "hub",
            "interchange",
            "loading",
            "package",
            "tokenization",
            "training",
        },
    ),
}


def imports(path):
    """Every module that a file imports, anywhere in it, by its absolute name."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")] if node.level else []
            module = ".".join(filter(None, parts)) if node.level else node.module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def room_of(module: str) -> str:
    """The room that a module of ours lies in, or the package of another."""
    top, *rest = module.split(".")
    if top != "modeling_gptlite":
        return top
    return rest[0] if rest and rest[0] in ROOMS else "package"


FILES = [(room, path) for room, (pattern, _, _) in ROOMS.items() for path in sorted(ROOT.glob(pattern))]


@pytest.mark.parametrize(("room", "path"), FILES, ids=[str(path.relative_to(ROOT)) for _, path in FILES])
def test_a_module_imports_only_what_its_room_may(room, path):
    _, packages, rooms = ROOMS[room]
    assert {room_of(module) for module in imports(path)} - STDLIB <= packages | rooms | {room}


def test_every_module_lies_in_a_room():
    files = {*ROOT.glob("modeling_gptlite/**/*.py"), *ROOT.glob("tokenization/**/*.py")}
    assert files == {path for _, path in FILES}


@pytest.mark.parametrize("path", sorted((ROOT / "scripts").glob("[!_]*.py")), ids=lambda path: path.name)
def test_a_script_imports_no_other_script(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert not (node.module or "").startswith("scripts")
            assert node.level == 0 or node.module in {"cli", "parser", "train_flags"}


def test_hub_files_are_found_whole_by_the_copier():
    from transformers.dynamic_module_utils import check_imports, get_relative_imports

    folder = ROOT / "modeling_gptlite"
    assert get_relative_imports(folder / "modeling_gptlite.py") == ["configuration_gptlite"]
    assert get_relative_imports(folder / "configuration_gptlite.py") == []
    check_imports(folder / "modeling_gptlite.py")
