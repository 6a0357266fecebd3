"""ONNX folders in the layout of transformers.js and optimum: graphs under `onnx/`, configuration and tokenizer beside.

    write_onnx(Material(model, tokenizer), Path("out/onnx"))

One graph serves the prompt and every next token. Its inputs are `input_ids`, `attention_mask`, `position_ids` and
`past_key_values.N.key` / `.value`, its outputs `logits` and `present.N.key` / `.value`, for any batch and length.
transformers' exporter traces it under other names, which no loader looks for, so inputs, outputs and axes are renamed.
"""

import copy
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ..loading import quiet
from ..modeling_gptlite import GPTLiteForCausalLM
from .material import Engine, Material, from_extra
from .native import ConversionError, to_native
from .pretrained import save_tokenizer, write_rope_theta


MODEL_FILE, QUANTIZED_FILE = "onnx/model.onnx", "onnx/model_quantized.onnx"
LARGEST_FILE = 10**9  # bytes; protobuf ends at 2 GB, and a browser's memory before that
# The axes of each input and output; None is a fixed size.
TOKENS = ("batch_size", "sequence_length")
AXES: dict[str, tuple[str | None, ...]] = {
    "input_ids": TOKENS,
    "attention_mask": ("batch_size", "total_sequence_length"),
    "position_ids": TOKENS,
    "past_key_values": ("batch_size", None, "past_sequence_length", None),
    "logits": (*TOKENS, None),
    "present": ("batch_size", None, "total_sequence_length", None),
}


def write_onnx(material: Material, folder: Path) -> None:
    """Write the graph in float32 and with int8 weights, `config.json`, `generation_config.json` and the tokenizer.

    The configuration is that of transformers' Qwen3, Llama or GPT-2 if one of them computes the model, as the loaders
    know these; otherwise it is GPTLite's own, and the graph runs in ONNX Runtime alone.

    Raises:
        ConversionError: A package is not installed.
    """
    with from_extra("ONNX"):
        import onnx  # noqa: F401
        import onnxruntime.quantization  # noqa: F401
        import onnxscript  # noqa: F401
        from transformers.exporters.base import ExportedModel  # noqa: F401  new in transformers 5.23

    model = _exportable(material.model)
    model.config.save_pretrained(folder)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    save_tokenizer(material.tokenizer, folder)
    write_rope_theta(model.config, folder)
    (folder / MODEL_FILE).parent.mkdir()
    with quiet():
        _save(_trace(model), folder)
        _quantize(folder)


def _exportable(model: GPTLiteForCausalLM) -> PreTrainedModel:
    """A float32 copy, of a class that everybody's loaders know if there is one."""
    try:
        return to_native(model).float()
    except ConversionError:
        return copy.deepcopy(model).float()


def _trace(model: PreTrainedModel) -> Any:
    """The graph as an `onnx_ir.Model`, under the names of `AXES`."""
    from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

    batch, past, tokens = 2, 3, 4  # the tracer takes 1 for a constant, and equal numbers for the same axis
    with torch.no_grad():
        cache = model(torch.zeros(batch, past, dtype=torch.long), use_cache=True).past_key_values
    inputs = {
        "input_ids": torch.zeros(batch, tokens, dtype=torch.long),
        "attention_mask": torch.ones(batch, past + tokens, dtype=torch.long),
        "position_ids": torch.arange(past, past + tokens).repeat(batch, 1),
        "past_key_values": cache,
    }
    axis = torch.export.Dim.AUTO
    shapes: dict[str, Any] = {name: {0: axis, 1: axis} for name in inputs}
    shapes["past_key_values"] = [{0: axis, 2: axis}] * (2 * model.config.num_hidden_layers)
    program = OnnxExporter().export(model, inputs, OnnxConfig(dynamic=True, dynamic_shapes=shapes)).program
    _rename(program.graph)
    _strip(program)
    return program


def _rename(graph: Any) -> None:
    """Name inputs, outputs and axes as transformers.js and optimum look for them."""
    from onnx_ir import Shape

    for node in graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None  # it is in terms of the tracer's axes, and onnxruntime infers it again
    for values, cache in ((graph.inputs, "past_key_values"), (graph.outputs, "present")):
        for value in values:
            name = value.name
            if ".layers." in name:  # input.past_key_values.layers.0.keys
                layer, kind = name.split(".layers.")[1].split(".")
                name, value.name = cache, f"{cache}.{layer}.{kind.removesuffix('s')}"
            value.shape = Shape([axis or size for axis, size in zip(AXES[name], value.shape, strict=True)])


def _strip(program: Any) -> None:
    """Delete the tracer's notes, which hold paths of this machine."""
    graph, nodes = program.graph, list(program.graph.all_nodes())
    values = [value for node in nodes for value in node.outputs]
    for item in (program, graph, *nodes, *values, *graph.inputs, *graph.initializers.values()):
        item.metadata_props.clear()
        item.doc_string = None


def _save(program: Any, folder: Path) -> None:
    """Save the graph; weights of more than `LARGEST_FILE` go to `model.onnx_data`, and `config.json` says so."""
    import onnx_ir

    path = folder / MODEL_FILE
    size = sum(value.const_value.nbytes for value in program.graph.initializers.values())
    if size <= LARGEST_FILE:
        return onnx_ir.save(program, path)
    onnx_ir.save(program, path, external_data=f"{path.name}_data")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["transformers.js_config"] = {"use_external_data_format": {path.name: True}}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _quantize(folder: Path) -> None:
    """Write the graph with int8 matrices; activations are quantized as they come.

    Weights use 7 of the 8 bits, because CPUs without VNNI add two products in 16 bits.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    settings = {"weight_type": QuantType.QInt8, "per_channel": True, "reduce_range": True}
    quantize_dynamic(folder / MODEL_FILE, folder / QUANTIZED_FILE, **settings)


def onnx_logits(
    folder: Path, input_ids: torch.Tensor, model: GPTLiteForCausalLM | None = None, file: str = MODEL_FILE
) -> torch.Tensor:
    """Logits by ONNX Runtime: the first half of the tokens as a prompt, the second half with the first's cache.

    Raises:
        ImportError: onnxruntime is not installed.
    """
    from onnxruntime import InferenceSession

    session = InferenceSession(folder / file)
    outputs = [node.name for node in session.get_outputs()]
    past = {
        node.name: torch.zeros(len(input_ids), node.shape[1], 0, node.shape[3]).numpy()
        for node in session.get_inputs()
        if node.name.startswith("past_key_values")
    }
    logits, length = [], 0
    for ids in input_ids.split((input_ids.shape[1] + 1) // 2, dim=1):
        positions = torch.arange(length, length + ids.shape[1]).expand(ids.shape)
        length += ids.shape[1]
        mask = torch.ones(len(ids), length, dtype=torch.long)
        feed = {"input_ids": ids.numpy(), "attention_mask": mask.numpy(), "position_ids": positions.numpy()}
        results = dict(zip(outputs, session.run(None, feed | past), strict=True))
        logits.append(torch.from_numpy(results["logits"]))
        past = {name: results[name.replace("past_key_values", "present")] for name in past}
    return torch.cat(logits, dim=1)


ENGINES = (
    Engine("ONNX Runtime", onnx_logits),
    Engine("ONNX Runtime, int8", partial(onnx_logits, file=QUANTIZED_FILE), tolerance=0.2),
)
