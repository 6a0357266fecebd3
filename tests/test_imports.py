"""The import direction of the packages, read off their syntax trees."""

import ast
import sys

import pytest
from conftest import ROOT


STDLIB = set(sys.stdlib_module_names)
TRAINING = {
    "accelerate",
    "datasets",
    "huggingface_hub",
    "matplotlib",
    "numpy",
    "peft",
    "sacrebleu",
    "safetensors",
    "torch",
    "transformers",
}
ALLOWED = {
    "modeling_gptlite/configuration_gptlite.py": {"transformers", "huggingface_hub"},
    "modeling_gptlite/modeling_gptlite.py": {"torch", "transformers", ".configuration_gptlite"},
    "modeling_gptlite/__init__.py": {"transformers", ".configuration_gptlite", ".modeling_gptlite"},
    "modeling_gptlite/conversion.py": {"torch", "transformers", ".configuration_gptlite", ".modeling_gptlite"},
    "modeling_gptlite/decoding.py": {"torch", "transformers"},
    "modeling_gptlite/formats.py": {"torch", "transformers", ".conversion", ".modeling_gptlite"}
    | {"gguf", "llama_cpp", "onnx", "onnxruntime", "onnxscript"},
    "modeling_gptlite/training/*.py": TRAINING
    | {".attention", ".checkpoints", ".data", ".hub", ".metrics", ".optim", ".report"},
    "tokenization/*.py": {"tokenizers", "transformers", "numpy", ".builders", ".corpus"},
}


def imports(path):
    """Every module that a file imports, anywhere in it; relative ones with their dots."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "") if node.level else node.module.split(".")[0]


FILES = [(path, allowed) for pattern, allowed in ALLOWED.items() for path in sorted(ROOT.glob(pattern))]


@pytest.mark.parametrize(("path", "allowed"), FILES, ids=[str(path.relative_to(ROOT)) for path, _ in FILES])
def test_a_module_imports_only_what_its_room_may(path, allowed):
    assert set(imports(path)) - STDLIB - {"pydoc_data"} <= allowed


@pytest.mark.parametrize("path", sorted((ROOT / "scripts").glob("[!_]*.py")), ids=lambda path: path.name)
def test_a_script_imports_no_other_script(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("scripts"):
            assert node.module == "scripts.cli"


def test_hub_files_are_found_whole_by_the_copier():
    from transformers.dynamic_module_utils import check_imports, get_relative_imports

    folder = ROOT / "modeling_gptlite"
    assert get_relative_imports(folder / "modeling_gptlite.py") == ["configuration_gptlite"]
    assert get_relative_imports(folder / "configuration_gptlite.py") == []
    check_imports(folder / "modeling_gptlite.py")
