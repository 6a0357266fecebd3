"""The import direction of the packages, read off their syntax trees."""

import ast
import sys

import pytest
from helpers import ROOT


STDLIB = set(sys.stdlib_module_names) | {"pydoc_data"}
HUB_FILES = "configuration_gptlite modeling_gptlite"
# Each layer: its files, the packages that it may import, and the layers, all of them further up in this table.
LAYERS = {
    "configuration_gptlite": ("modeling_gptlite/configuration_gptlite.py", "huggingface_hub transformers", ""),
    "modeling_gptlite": ("modeling_gptlite/modeling_gptlite.py", "torch transformers", "configuration_gptlite"),
    "package": ("modeling_gptlite/__init__.py", "transformers", HUB_FILES),
    "decoding": ("modeling_gptlite/decoding.py", "transformers", ""),
    "errors": ("modeling_gptlite/errors.py", "", ""),
    "files": ("modeling_gptlite/files.py", "", "errors"),
    "hub": ("modeling_gptlite/hub.py", "huggingface_hub", "errors"),
    "loading": (
        "modeling_gptlite/loading.py",
        "huggingface_hub safetensors torch transformers",
        "errors files hub package",
    ),
    "tokenization": ("tokenization/*.py", "numpy tokenizers transformers", ""),
    "data": (
        "modeling_gptlite/data/*.py",
        "datasets numpy pyarrow torch transformers",
        "decoding errors files tokenization",
    ),
    "training": (
        "modeling_gptlite/training/*.py",
        "accelerate filelock huggingface_hub psutil safetensors torch tqdm transformers",
        "data decoding errors files hub loading",
    ),
    "interchange": (
        "modeling_gptlite/interchange/*.py",
        "gguf llama_cpp onnx onnx_ir onnxruntime onnxscript tokenizers torch transformers",
        f"{HUB_FILES} decoding errors files loading tokenization",
    ),
    "page": (
        "modeling_gptlite/page/*.py",
        "gradio huggingface_hub torch transformers",
        "decoding errors files hub interchange loading",
    ),
    "engine": (
        "modeling_gptlite/engine/*.py",
        "huggingface_hub numpy onnx onnxruntime torch transformers",
        f"{HUB_FILES} errors files interchange loading",
    ),
    "runs": (
        "modeling_gptlite/runs/*.py",
        "accelerate huggingface_hub jinja2 matplotlib peft tokenizers torch transformers yaml",
        "data decoding engine errors files hub interchange loading package tokenization training",
    ),
    "evaluation": (
        "modeling_gptlite/evaluation/*.py",
        "numpy sacrebleu torch transformers",
        "data decoding errors files loading package runs training",
    ),
}
FILES = [(layer, path) for layer, (files, *_) in LAYERS.items() for path in sorted(ROOT.glob(files))]


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


def layer_of(module: str) -> str:
    """The layer that contains a module of this repository, or the package that contains another."""
    top, *rest = module.split(".")
    if top != "modeling_gptlite":
        return top
    return rest[0] if rest and rest[0] in LAYERS else "package"


@pytest.mark.parametrize(("layer", "path"), FILES, ids=[str(path.relative_to(ROOT)) for _, path in FILES])
def test_a_module_imports_only_what_its_layer_may(layer, path):
    _, packages, layers = LAYERS[layer]
    found = {layer_of(module) for module in imports(path)} - STDLIB - {layer}
    assert found <= {*packages.split(), *layers.split()}


def test_a_layer_imports_only_layers_above_it():
    above = set()
    for layer, (_, _, layers) in LAYERS.items():
        assert set(layers.split()) <= above, layer
        above.add(layer)


def test_every_module_belongs_to_one_layer():
    files = [*ROOT.glob("modeling_gptlite/**/*.py"), *ROOT.glob("tokenization/**/*.py")]
    assert sorted(files) == sorted(path for _, path in FILES)


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
