"""GGUF files for llama.cpp, Ollama and LM Studio: the model, its tokenizer and its metadata in one file.

    write_gguf(Material(model, tokenizer, name="quickstart"), Path("out/gguf"), dtype="q8_0")

The file is `NAME-F32.gguf` (or `-F16`, `-BF16`, `-Q8_0`): Ollama and the Hub read the precision from that name.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Regex
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from ..decoding import first_token
from ..loading import quiet
from ..modeling_gptlite import GPTLiteForCausalLM
from .material import Engine, Material, from_extra, logits_of
from .native import ConversionError, to_native


# Precisions of the matrices: how far rounding to it may move a logit, relative to the largest logit.
DTYPES = {"f32": 0.0, "f16": 5e-3, "bf16": 3e-2, "q8_0": 5e-2}
OF_TORCH = {torch.float16: "f16", torch.bfloat16: "bf16"}
# Metadata of a file: the `gguf` package's name, the name in the configuration of transformers' class.
METADATA = {
    "gpt2": {
        "vocab_size": "vocab_size",
        "context_length": "n_positions",
        "embedding_length": "n_embd",
        "feed_forward_length": "n_inner",
        "block_count": "n_layer",
        "head_count": "n_head",
        "layer_norm_eps": "layer_norm_epsilon",
    },
    "qwen3": {
        "vocab_size": "vocab_size",
        "context_length": "max_position_embeddings",
        "embedding_length": "hidden_size",
        "feed_forward_length": "intermediate_size",
        "block_count": "num_hidden_layers",
        "head_count": "num_attention_heads",
        "head_count_kv": "num_key_value_heads",
        "key_length": "head_dim",
        "value_length": "head_dim",
        "layer_norm_rms_eps": "rms_norm_eps",
    },
}
METADATA["llama"] = {**METADATA["qwen3"], "rope_dimension_count": "head_dim"}
# The activations that llama.cpp computes: tanh GELU for GPT-2, SiLU for the others.
ACTIVATIONS = {
    "gpt2": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate"),
    "qwen3": ("silu", "swish"),
    "llama": ("silu", "swish"),
}
# How text is split before merging, by the names of `tokenizer.ggml.pre` (llama.cpp's src/llama-vocab.cpp).
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PRE_TOKENIZERS = {
    "gpt-2": ByteLevel(add_prefix_space=False),
    "smollm": Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]),
    "qwen2": Sequence([Split(Regex(_QWEN2), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]),
}
# Most of what llama.cpp's convert_hf_to_gguf.py tells them apart by.
TEST_STRING = (
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n🚀 (normal) 😶\u200d🌫️ (multiple emojis concatenated) ✅ 🦙🦙 "
    "3 33 333 3333 3.3 3..3 3...3 កាន់តែពិសេសអាច😁 ?我想在apple工作1314151天～ ------======= нещо на Български "
    "''''''```````\"\"\"\"......!!!!!!?????? I've been 'told he's there, 'RE you sure? 'M not sure I'll make it, "
    "'D you like some tea? We'Ve a'lL"
)


def gguf_path(folder: Path) -> Path:
    """The GGUF file of a written folder."""
    (path,) = folder.glob("*.gguf")
    return path


def write_gguf(material: Material, folder: Path, dtype: str | None = None) -> None:
    """Write the model as llama.cpp's `qwen3`, `llama` or `gpt2`, with its tokenizer, to `NAME-PRECISION.gguf`.

    Args:
        dtype: Precision of the matrices, a key of `DTYPES`; vectors and learned positions stay in float32, as llama.cpp
            expects. Default: the model's own.

    Raises:
        ConversionError: llama.cpp cannot compute the model or tokenize its text exactly, or `gguf` is not installed.
    """
    with from_extra("GGUF"):
        import gguf

    native = to_native(material.model)
    config, architecture = native.config, native.config.model_type
    _require_computable(material.model, config)
    tokenizer = material.tokenizer
    tokens, types, merges, pre_tokenizer = vocabulary(tokenizer, config.vocab_size)
    dtype = dtype or OF_TORCH.get(native.dtype, "f32")
    kind = dtype.upper()

    writer = gguf.GGUFWriter(folder / f"{material.name}-{kind}.gguf", architecture)
    writer.add_name(material.name)
    if material.license is not None:
        writer.add_license(material.license)
    writer.add_file_type(gguf.LlamaFileType["ALL_F32" if kind == "F32" else f"MOSTLY_{kind}"])
    for name, theirs in METADATA[architecture].items():
        getattr(writer, f"add_{name}")(getattr(config, theirs))
    if architecture != "gpt2":
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer)
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType[name] for name in types])
    writer.add_token_merges(merges)
    writer.add_add_bos_token(first_token(tokenizer) is not None)
    if tokenizer.chat_template is not None:
        writer.add_chat_template(tokenizer.chat_template)
    for name in ("bos", "eos", "unk", "pad"):
        if (token_id := getattr(tokenizer, f"{name}_token_id")) is not None:
            getattr(writer, f"add_{name}_token_id")(token_id)
    _add_tensors(writer, native, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _require_computable(model: GPTLiteForCausalLM, native: PreTrainedConfig) -> None:
    architecture, activation = native.model_type, model.config.hidden_act
    if activation not in ACTIVATIONS[architecture]:
        raise ConversionError(
            f"llama.cpp's {architecture} computes {ACTIVATIONS[architecture][0]}, this model {activation}"
        )
    if architecture != "gpt2" and native.rope_parameters["rope_type"] != "default":
        raise ConversionError(f"RoPE scaling ({native.rope_parameters['rope_type']}) is not supported in GGUF")


def _add_tensors(writer: Any, native: PreTrainedModel, kind: str) -> None:
    """Add the weights under the names that the `gguf` package has for them."""
    from gguf import GGML_QUANT_SIZES, MODEL_ARCH, GGMLQuantizationType, get_tensor_name_map, quants

    config = native.config
    names = get_tensor_name_map(MODEL_ARCH[config.model_type.upper()], config.num_hidden_layers)
    transposed = {f"{name}.weight" for name, module in native.named_modules() if isinstance(module, Conv1D)}
    for name, tensor in native.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        theirs = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if name in transposed:
            tensor = tensor.t()
        elif config.model_type == "llama" and "q_proj" in name:
            tensor = _in_pairs(tensor, config.num_attention_heads)
        elif config.model_type == "llama" and "k_proj" in name:
            tensor = _in_pairs(tensor, config.num_key_value_heads)
        array = tensor.float().contiguous().numpy()
        is_full = array.ndim == 1 or theirs == "position_embd.weight"  # as in llama.cpp's own converter
        stored = GGMLQuantizationType["F32" if is_full else kind]
        if array.shape[-1] % GGML_QUANT_SIZES[stored][0]:  # rows that no whole number of blocks fills
            stored = GGMLQuantizationType.F16
        writer.add_tensor(theirs, quants.quantize(array, stored), raw_dtype=stored)


def _in_pairs(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of a query or key projection in the order of llama.cpp's `llama`.

    It rotates neighbors, where transformers' class rotates a number of the first half of a head with one of the second.
    """
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


class Vocabulary(NamedTuple):
    """A tokenizer as llama.cpp stores it: tokens and their types by id, merges, and how text is split before them."""

    tokens: list[str]
    types: list[str]
    merges: list[str]
    pre_tokenizer: str


def vocabulary(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> Vocabulary:
    """The tokenizer as llama.cpp's byte-level BPE.

    Raises:
        ConversionError: The tokenizer is of another kind, or has no end-of-text token.
    """
    from gguf.vocab import bytes_to_unicode

    if tokenizer.eos_token_id is None:
        raise ConversionError("llama.cpp needs an end-of-text token, and this tokenizer has none")
    pre_tokenizer = known_pre_tokenizer(tokenizer)
    alphabet, added = bytes_to_unicode(), tokenizer.added_tokens_decoder
    by_id = {index: token for token, index in tokenizer.get_vocab().items()}
    merges = [tuple(pair) for pair in _state(tokenizer)["model"]["merges"]]
    tokens, types = [], []
    for index in range(vocab_size):
        token, kind = by_id.get(index), "NORMAL"
        if token is None:  # a row of the embedding without a token
            token, kind = f"[PAD{index}]", "UNUSED"
        elif index in added:
            kind = "CONTROL" if added[index].special else "USER_DEFINED"
        elif pre_tokenizer is None:
            # A character of several bytes becomes a chain of merges from left to right. These cannot combine bytes of
            # two characters, because in UTF-8 only the first byte of a character looks like a first byte.
            token = "".join(alphabet[byte] for byte in token.encode())
            merges += [(token[:end], token[end]) for end in range(1, len(token))]
        tokens.append(token)
        types.append(kind)
    # GGUF has no empty arrays: write one merge, of two bytes that never occur in UTF-8.
    unique = list(dict.fromkeys(merges)) or [(alphabet[0xFE], alphabet[0xFF])]
    return Vocabulary(tokens, types, [" ".join(pair) for pair in unique], pre_tokenizer or "gpt-2")


def known_pre_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """llama.cpp's name for how a byte-level BPE splits text, found as llama.cpp does, by what a test string becomes.

    Returns:
        A key of `PRE_TOKENIZERS`; None for a tokenizer of single characters, which are never merged.

    Raises:
        ConversionError: The tokenizer is neither.
    """
    if tokenizer.is_fast:
        state = _state(tokenizer)
        model, normalizer = state["model"], state["normalizer"] or {"type": "NFC"}
        if model["type"] == "BPE" and not (model["byte_fallback"] or model["ignore_merges"]):
            backend = tokenizer.backend_tokenizer.pre_tokenizer  # type: ignore[attr-defined]
            if backend is None and state["normalizer"] is None and not model["merges"]:
                if all(len(token) == 1 for token in model["vocab"].keys() - tokenizer.get_added_vocab().keys()):
                    return None
            elif backend is not None and normalizer == {"type": "NFC"}:
                pieces = backend.pre_tokenize_str(TEST_STRING)
                for name, known in PRE_TOKENIZERS.items():
                    if known.pre_tokenize_str(TEST_STRING) == pieces:
                        return name
    raise ConversionError(
        "the tokenizer is neither character-level nor a byte-level BPE that splits text as one of "
        f"{', '.join(PRE_TOKENIZERS)}; llama.cpp's convert_hf_to_gguf.py knows others"
    )


def _state(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    return json.loads(tokenizer.backend_tokenizer.to_str())  # type: ignore[attr-defined]


def gguf_logits(folder: Path, input_ids: torch.Tensor, model: GPTLiteForCausalLM) -> torch.Tensor:
    # transformers' loader ignores the context length and head size in the file, so it gets the configuration.
    settings = {"config": to_native(model).config, "dtype": torch.float32}
    with quiet():
        loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=gguf_path(folder).name, **settings)
    return logits_of(loaded, input_ids)


def llama_cpp_logits(folder: Path, input_ids: torch.Tensor, model: GPTLiteForCausalLM) -> torch.Tensor:
    """Logits by llama.cpp, with float32 keys and values, one token at a time.

    Batches of 8-bit weights can crash it on CPUs with AMX (https://github.com/ggml-org/llama.cpp/issues/20824).

    Raises:
        ImportError: llama-cpp-python is not installed.
    """
    from llama_cpp import GGML_TYPE_F32, Llama

    ids = input_ids[0].tolist()
    cache = {"n_ctx": len(ids), "type_k": GGML_TYPE_F32, "type_v": GGML_TYPE_F32}
    engine = Llama(str(gguf_path(folder)), **cache, n_batch=1, n_ubatch=1, logits_all=True, verbose=False)
    engine.eval(ids)
    return torch.tensor(engine.scores[: len(ids)])[None]


ENGINES = (
    Engine("transformers' GGUF loader", gguf_logits),
    # llama.cpp takes GELU from a table in half precision, and multiplies half-precision weights in half precision.
    Engine("llama.cpp", llama_cpp_logits, tolerance=5e-2, package="llama-cpp-python"),
)
