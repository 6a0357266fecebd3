"""A page without a server: plain files, and the model itself runs in the visitor's browser, with transformers.js.

    build_website("out/quickstart", Path("out/page"))

`python -m http.server --directory out/page` serves it; so does every web host, and a static Space.
"""

import base64
import hashlib
import html
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from string import Template

from ..errors import UserError
from ..files import new_folder
from ..interchange import write
from ..interchange.pretrained import read_pretrained
from .assets import asset
from .render import render_heading, render_model
from .settings import KEEP_SEED_INFO, PROMPT_INFO, SEED_INFO, SEEDS, SETTINGS
from .tracing import TracedModel, example_prompts, label_of, read_facts


CDN = "https://cdn.jsdelivr.net/npm/"
LARGEST_FLOAT = 100_000_000  # bytes of a graph in float32; a larger one is replaced by that with int8 weights


class PageError(UserError, ValueError):
    """The page of a model cannot be built."""


@dataclass(frozen=True)
class Library:
    """A file that the page loads: a package of the npm registry with its version, a path in it, the digest of it."""

    package: str
    version: str
    path: str
    integrity: str

    @property
    def address(self) -> str:
        return f"{CDN}{self.package}@{self.version}/{self.path}"


_ONNX_RUNTIME = ("onnxruntime-web", "1.31.0-dev.20260914-8d85527a0")  # what transformers.js 4.3.1 is built for
TRANSFORMERS_JS = Library(
    "@huggingface/transformers",
    "4.3.1",
    "dist/transformers.web.min.js",
    "sha384-Wdo8O83tMYP9xRVBKFSxwMStkw0K4iY+FmChXm/4e//sv66vg68y2flNvmtx6bPH",
)
ONNX_RUNTIME = Library(
    *_ONNX_RUNTIME,
    "dist/ort.wasm.bundle.min.mjs",
    "sha384-rb+zD6nKrYqdffKZxEFA2qD+Aq+gDcqQOJ7VEOAWUCsrlpRf6VALFrRzLPo/dt5J",
)
WASM = Library(
    *_ONNX_RUNTIME,
    "dist/ort-wasm-simd-threaded.wasm",
    "sha384-LrOPe1yNsLVzhsriuQfxO06RWx/XakR0S8uiOMx7HVJP6N/IEaR1EAgJMFeTanif",
)
# What transformers.js imports: the build of ONNX Runtime for the CPU takes the place of the larger one for WebGPU.
IMPORTS = {
    "@huggingface/transformers": TRANSFORMERS_JS,
    "onnxruntime-web/webgpu": ONNX_RUNTIME,
    "onnxruntime-common": ONNX_RUNTIME,
}


def build_website(model: str, folder: Path, node_modules: Path | None = None) -> None:
    """Write the page of a model into a new folder, under a temporary name until it is complete.

    Args:
        model: Folder of the model, or its name on the Hub.
        folder: It must not exist, or be empty.
        node_modules: Folder with the npm package `@huggingface/transformers` of the right version. Its files are copied
            and the page loads nothing from elsewhere. Default: the page loads them from jsDelivr.

    Raises:
        UserError: The model cannot be loaded or exported, a library is missing, or the folder cannot be written.
    """
    with new_folder(folder, PageError) as page:
        write_website(model, page, node_modules)


def write_website(model: str, folder: Path, node_modules: Path | None = None) -> None:
    """Like `build_website`, into an existing folder."""
    addresses = {library: library.address for library in (*IMPORTS.values(), WASM)}
    if node_modules:
        addresses = {library: _copy(library, node_modules, folder / "lib") for library in addresses}
    material = read_pretrained(model)
    traced = TracedModel(label_of(model), material.model, material.tokenizer, read_facts(model))
    (folder / "model").mkdir()
    dtype = _export(material, folder / "model")
    for name in ("style.css", "page.js", "static.css", "static.js"):
        (folder / name).write_text(asset(name), encoding="utf-8")
    (folder / "index.html").write_text(_index(traced, dtype, addresses), encoding="utf-8")


def _copy(library: Library, node_modules: Path, folder: Path) -> str:
    """Copy a library's file beside the page; returns its address there."""
    source = node_modules / library.package / library.path
    if not source.is_file():
        raise PageError(
            f"{source} does not exist; to get it: npm install --ignore-scripts {TRANSFORMERS_JS.package}@"
            f"{TRANSFORMERS_JS.version}"
        )
    digest = base64.b64encode(hashlib.sha384(source.read_bytes()).digest()).decode()
    if f"sha384-{digest}" != library.integrity:
        raise PageError(f"{source} is not that of {library.package} {library.version}")
    folder.mkdir(exist_ok=True)
    shutil.copyfile(source, folder / source.name)
    return f"./{folder.name}/{source.name}"


def _export(material, folder: Path) -> str:
    """Write the ONNX graph that the page loads; returns its precision, as transformers.js calls it."""
    write(material, folder, "onnx")
    if json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"] == "gptlite":
        raise PageError("the model is neither exactly a Qwen3 nor a GPT-2, which transformers.js knows")
    graph, quantized = folder / "onnx" / "model.onnx", folder / "onnx" / "model_quantized.onnx"
    is_large = sum(path.stat().st_size for path in graph.parent.glob("model.onnx*")) > LARGEST_FLOAT
    for path in graph.parent.glob("model.onnx*") if is_large else [quantized]:
        path.unlink()
    return "q8" if is_large else "fp32"


def _index(traced: TracedModel, dtype: str, addresses: dict[Library, str]) -> str:
    imports = {name: addresses[library] for name, library in IMPORTS.items()}
    facts = {
        "dtype": dtype,
        "unit": traced.unit,
        "context": traced.context,
        "ends": traced.ends,
        "prompts": example_prompts([traced]),
        "seeds": SEEDS,
        "wasm": {"address": addresses[WASM], "integrity": WASM.integrity},
    }
    return Template(asset("static.html")).substitute(
        title=html.escape(traced.label),
        heading=render_heading(traced.label, traced.unit),
        model=render_model(traced),
        settings="\n".join(_slider(name, f"{traced.unit}s") for name in SETTINGS),
        prompt_info=PROMPT_INFO,
        seed_info=SEED_INFO,
        keep_seed_info=KEEP_SEED_INFO,
        imports=_json({"imports": imports, "integrity": {addresses[lib]: lib.integrity for lib in IMPORTS.values()}}),
        facts=_json(facts),
    )


def _slider(name: str, units: str) -> str:
    setting = SETTINGS[name]
    return (
        f'<label>{setting.label} <output></output><input type="range" id="{name}" min="{setting.low}" '
        f'max="{setting.high}" step="{setting.step}" value="{setting.value}">'
        f"<small>{setting.info.format(units=units)}</small></label>"
    )


def _json(value: object) -> str:
    """JSON for a script element, which no text in it can end."""
    return json.dumps(value, ensure_ascii=False).replace("<", "\\u003c")
