"""A GPTLite model as a graph for ONNX Runtime's fused kernels, built from its weights without tracing.

    graph = build_graph(model, int8=True)
    onnx.save(graph, "model.onnx")

`GroupQueryAttention` applies RoPE, appends to the cache in place and attends, in one kernel. `MatMulNBits` multiplies
by int8 weights with one scale per 32 of them. In the caches, each text starts at position 0, without padding.

| input | shape | |
|---|---|---|
| `input_ids`, `position_ids` | `(batch, tokens)` | |
| `last_positions` | `(batch,)` int32 | the last position of each text |
| `longest` | `()` int32 | the length of the longest text |
| `kept` | `(batch, logits)` | which of the tokens get logits |
| `past_N_key`, `past_N_value` | `(batch, heads, context, head_dim)` | the cache of layer N |

The outputs are `logits` `(batch, logits, vocab_size)` and `present_N_key`, `present_N_value`, which must be bound
to the buffers of the past ones.
"""

from typing import Any

import numpy as np
import torch

from ..errors import UserError
from ..interchange.native import WHOLE_MODEL, require_supported
from ..modeling_gptlite import GPTLiteForCausalLM, GPTLiteModel


BLOCK = 32  # weights that share a scale
MICROSOFT = "com.microsoft"  # where ONNX Runtime's own operators live
# The operator that computes each activation: its domain, name and attributes
ACTIVATIONS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "silu": (MICROSOFT, "QuickGelu", {"alpha": 1.0}),
    "swish": (MICROSOFT, "QuickGelu", {"alpha": 1.0}),
    "relu": ("", "Relu", {}),
    "gelu": (MICROSOFT, "Gelu", {}),
    "gelu_new": (MICROSOFT, "FastGelu", {}),
    "gelu_pytorch_tanh": (MICROSOFT, "FastGelu", {}),
}


class EngineError(UserError, ValueError):
    """The engine cannot run the model; the message says why."""


class Builder:
    """Collects the nodes and weights of a graph; every method returns the name of its result."""

    def __init__(self, int8: bool):
        self.int8 = int8
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def constant(self, array: np.ndarray | torch.Tensor) -> str:
        from onnx import numpy_helper

        if isinstance(array, torch.Tensor):
            array = array.detach().float().numpy()
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(array), f"weight_{len(self.weights)}"))
        return self.weights[-1].name

    def op(self, kind: str, *inputs: str, outputs: tuple[str, ...] = (), domain: str = "", **attributes: Any) -> str:
        from onnx import helper

        outputs = outputs or (f"result_{len(self.nodes)}",)
        self.nodes.append(helper.make_node(kind, inputs, outputs, domain=domain, **attributes))
        return outputs[0]

    def linear(self, x: str, *modules: torch.nn.Linear) -> str:
        """The modules' outputs, concatenated, as one product."""
        weight = torch.cat([module.weight.detach().float() for module in modules]).numpy()
        biases = [module.bias.detach() for module in modules if module.bias is not None]
        bias = self.constant(torch.cat(biases)) if biases else ""
        if not self.int8:
            product = self.op("MatMul", x, self.constant(weight.T))
            return self.op("Add", product, bias) if bias else product
        rows, columns = weight.shape
        quantized, scales = quantize(weight)
        inputs = [x, self.constant(quantized), self.constant(scales), *(["", "", bias] if bias else [])]
        sizes = {"K": columns, "N": rows, "bits": 8, "block_size": BLOCK}
        # 4: multiply in int8, with the inputs quantized in blocks, too
        return self.op("MatMulNBits", *inputs, domain=MICROSOFT, **sizes, accuracy_level=4)

    def norm(self, x: str, module: torch.nn.Module) -> str:
        weight, bias = self.constant(module.weight), getattr(module, "bias", None)  # type: ignore[arg-type]
        if isinstance(module, torch.nn.LayerNorm):
            inputs = [x, weight, *([self.constant(bias)] if bias is not None else [])]
            return self.op("LayerNormalization", *inputs, axis=-1, epsilon=module.eps)
        return self.op("SimplifiedLayerNormalization", x, weight, axis=-1, epsilon=module.variance_epsilon)

    def norm_of_heads(self, x: str, module: torch.nn.Module, head_dim: int) -> str:
        heads = self.op("Reshape", x, self.constant(np.array([0, 0, -1, head_dim])))
        return self.op("Reshape", self.norm(heads, module), self.constant(np.array([0, 0, -1])))


def quantize(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights `(rows, columns)` as uint8 `(rows, blocks, BLOCK)` around 128, and their scales `(rows, blocks)`."""
    rows, columns = weight.shape
    blocks = -(-columns // BLOCK)
    padded = np.zeros((rows, blocks * BLOCK), np.float32)
    padded[:, :columns] = weight
    padded = padded.reshape(rows, blocks, BLOCK)
    scales = np.abs(padded).max(axis=2) / 127
    quantized = np.round(padded / np.where(scales == 0, 1, scales)[..., None]) + 128
    return quantized.astype(np.uint8), scales


def build_graph(model: GPTLiteForCausalLM, int8: bool = True, metadata: dict[str, str] | None = None) -> Any:
    """The model as an `onnx.ModelProto`.

    Args:
        int8: Store the matrices in int8; embeddings and vectors stay in float32.
        metadata: Strings to store in the file.

    Raises:
        EngineError: ONNX Runtime has no kernel for the model's activation or head size.
    """
    from onnx import helper

    config, decoder = model.config, model.model
    _require_kernels(config)
    builder = Builder(int8)
    hidden = builder.op("Gather", builder.constant(decoder.embed_tokens.weight), "input_ids")
    rotary: list[str] = []
    if config.position_embedding_type == "learned":
        positions = builder.op("Gather", builder.constant(decoder.embed_positions.weight), "position_ids")
        hidden = builder.op("Add", hidden, positions)
    else:
        rotary = [builder.constant(table) for table in _rotary_tables(decoder)]
    for index, layer in enumerate(decoder.layers):
        attended = _attention(builder, builder.norm(hidden, layer.input_layernorm), layer.self_attn, index, rotary)
        hidden = builder.op("Add", hidden, attended)
        activated = _mlp(builder, builder.norm(hidden, layer.post_attention_layernorm), layer.mlp, config.hidden_act)
        hidden = builder.op("Add", hidden, activated)
    indices = builder.op("Unsqueeze", "kept", builder.constant(np.array([2])))
    hidden = builder.op("GatherND", hidden, indices, batch_dims=1)
    builder.op("Identity", builder.linear(builder.norm(hidden, decoder.norm), model.lm_head), outputs=("logits",))

    graph = helper.make_graph(builder.nodes, "gptlite", *_signature(config), initializer=builder.weights)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(MICROSOFT, 1)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    helper.set_model_props(proto, metadata or {})
    return proto


def _require_kernels(config: Any) -> None:
    require_supported(config, "the engine", WHOLE_MODEL)
    if config.hidden_act not in ACTIVATIONS:
        raise EngineError(f"the engine computes {', '.join(ACTIVATIONS)}, not hidden_act={config.hidden_act!r}")
    if config.head_dim % 8:
        raise EngineError(f"the engine needs a head_dim that is a multiple of 8; this model has {config.head_dim}")


def _rotary_tables(decoder: GPTLiteModel) -> list[torch.Tensor]:
    """Cosines and sines `(context, D / 2)`."""
    positions = torch.arange(decoder.config.max_position_embeddings)[None]
    tables = decoder.rotary_emb(torch.zeros(1), positions)  # type: ignore[operator]
    # Of the two halves, the first has the model's signs in its sines, and the kernel has its own.
    return [table.flatten(0, -2).chunk(2, dim=-1)[1] for table in tables]


def _attention(builder: Builder, x: str, module: Any, index: int, rotary: list[str]) -> str:
    config = module.config
    heads, kv_heads, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    packed = builder.linear(x, module.q_proj, module.k_proj, module.v_proj)
    widths = builder.constant(np.array([heads * size, kv_heads * size, kv_heads * size]))
    names = tuple(f"{name}_{index}" for name in ("query", "key", "value"))
    builder.op("Split", packed, widths, outputs=names, axis=-1)
    query, key, value = names
    if config.qk_norm:
        query = builder.norm_of_heads(query, module.q_norm, size)
        key = builder.norm_of_heads(key, module.k_norm, size)
    if rotary and size % 16:  # which the fused kernel does not rotate
        query, key = (
            builder.op("RotaryEmbedding", part, "position_ids", *rotary, domain=MICROSOFT, num_heads=count)
            for part, count in ((query, heads), (key, kv_heads))
        )
        rotary = []
    past = [f"past_{index}_{kind}" for kind in ("key", "value")]
    attended = builder.op(
        "GroupQueryAttention",
        *(query, key, value, *past, "last_positions", "longest", *rotary),
        outputs=(f"attended_{index}", f"present_{index}_key", f"present_{index}_value"),
        domain=MICROSOFT,
        num_heads=heads,
        kv_num_heads=kv_heads,
        do_rotary=int(bool(rotary)),
        scale=module.scaling,
    )
    return builder.linear(attended, module.o_proj)


def _mlp(builder: Builder, x: str, module: Any, activation: str) -> str:
    if not module.is_gated:
        return builder.linear(_activate(builder, builder.linear(x, module.up_proj), activation), module.down_proj)
    gate, up = _activate(builder, builder.linear(x, module.gate_proj), activation), builder.linear(x, module.up_proj)
    return builder.linear(builder.op("Mul", gate, up), module.down_proj)


def _activate(builder: Builder, x: str, activation: str) -> str:
    domain, kind, attributes = ACTIVATIONS[activation]
    return builder.op(kind, x, domain=domain, **attributes)


def _signature(config: Any) -> tuple[list[Any], list[Any]]:
    """The graph's inputs and outputs, as in the table above."""
    from onnx import TensorProto, helper

    def value(name: str, kind: int, *shape: Any) -> Any:
        return helper.make_tensor_value_info(name, kind, shape)

    cache: tuple[Any, ...] = ("batch", config.num_key_value_heads, "context", config.head_dim)
    names = [f"{index}_{kind}" for index in range(config.num_hidden_layers) for kind in ("key", "value")]
    inputs = [
        value("input_ids", TensorProto.INT64, "batch", "tokens"),
        value("position_ids", TensorProto.INT64, "batch", "tokens"),
        value("last_positions", TensorProto.INT32, "batch"),
        value("longest", TensorProto.INT32),
        value("kept", TensorProto.INT64, "batch", "logits"),
        *(value(f"past_{name}", TensorProto.FLOAT, *cache) for name in names),
    ]
    outputs = [
        value("logits", TensorProto.FLOAT, "batch", "logits", config.vocab_size),
        *(value(f"present_{name}", TensorProto.FLOAT, *cache) for name in names),
    ]
    return inputs, outputs
