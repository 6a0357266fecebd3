"""Files of other engines: nanoGPT's checkpoints, GGUF for llama.cpp and its kin, ONNX.

    write_gguf(model, tokenizer, Path("out/gguf"))

Every `write_*` fills a folder, and refuses what the engine cannot compute. Every `*_logits` runs such a folder in the
engine that it is for: the logits `(batch, seq, vocab_size)`, to compare with the model's own.
"""

import contextlib
import copy
import io
import json
import logging
import pickle
import warnings
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from .conversion import ConversionError, from_nanogpt, to_nanogpt, to_native
from .modeling_gptlite import GPTLiteForCausalLM


CHECKPOINT_FILE, META_FILE, GGUF_FILE, ONNX_FILE = "ckpt.pt", "meta.pkl", "model.gguf", "model.onnx"
# What a GGUF file says of the model: the `gguf` package's names, those of the class in transformers.
GGUF_FIELDS = {
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
# The activations that llama.cpp computes there: GPT-2's GELU by tanh, and SiLU.
GGUF_ACTIVATIONS = {"gpt2": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate"), "qwen3": ("silu", "swish")}


def read_nanogpt(path: Path) -> dict:
    """A nanoGPT checkpoint, without running any code in it.

    Raises:
        ConversionError: it holds anything but tensors and plain values, or is damaged.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # what torch raises for a damaged file has no common type
        raise ConversionError(
            f"{path} is not a whole file of tensors and plain values; nothing else is loaded, because it could run code"
        ) from error
    if not isinstance(checkpoint, dict):
        raise ConversionError(f"{path} holds a {type(checkpoint).__name__}, not a checkpoint of nanoGPT")
    return checkpoint


def read_meta(path: Path) -> list[str]:
    """The tokens of nanoGPT's `meta.pkl` in the order of their ids, without running any code in it.

    Raises:
        ConversionError: it holds anything but plain values, or no `itos` that numbers its tokens from 0.
    """
    try:
        with open(path, "rb") as file:
            meta = _PlainUnpickler(file).load()
    except OSError:
        raise
    except Exception as error:  # a damaged pickle raises anything
        raise ConversionError(f"{path} is not nanoGPT's meta.pkl: {error}") from error
    itos = meta.get("itos") if isinstance(meta, dict) else None
    if not isinstance(itos, dict) or not itos or sorted(itos, key=str) != sorted(range(len(itos)), key=str):
        raise ConversionError(f"{path} has no itos, nanoGPT's table from the ids 0, 1, 2, ... to characters")
    return [itos[index] for index in range(len(itos))]


class _PlainUnpickler(pickle.Unpickler):
    """Dictionaries, lists, strings and numbers need no class; whatever names one is refused before it is imported."""

    def find_class(self, module, name):
        raise pickle.UnpicklingError(f"it names {module}.{name}, and only plain values are loaded")


def write_nanogpt(model: GPTLiteForCausalLM, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """`ckpt.pt` for nanoGPT's `sample.py`, and `meta.pkl` with the characters, to lie in `data/<folder's name>`.

    Raises:
        ConversionError: nanoGPT cannot compute the model, or has no such tokenizer.
    """
    checkpoint = to_nanogpt(model)
    if _bpe(tokenizer)[0] == "characters":
        tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
        meta = {
            "vocab_size": len(tokens),
            "itos": dict(enumerate(tokens)),
            "stoi": {t: i for i, t in enumerate(tokens)},
        }
        (folder / META_FILE).write_bytes(pickle.dumps(meta))
        checkpoint["config"] = {"dataset": folder.name}  # where sample.py looks for meta.pkl
    elif not _is_gpt2_tokenizer(tokenizer):
        raise ConversionError("nanoGPT knows characters and the tokenizer of GPT-2, and this model has another one")
    torch.save(checkpoint, folder / CHECKPOINT_FILE)


def nanogpt_logits(folder: Path, input_ids: torch.Tensor) -> torch.Tensor:
    return _logits(from_nanogpt(read_nanogpt(folder / CHECKPOINT_FILE)), input_ids)


def write_gguf(model: GPTLiteForCausalLM, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """`model.gguf`, as llama.cpp's `qwen3` or `gpt2`, in the model's precision, its tokenizer included.

    Raises:
        ConversionError: llama.cpp cannot compute the model or its tokenizer exactly, or gguf is not installed.
    """
    with _from_extra("GGUF"):
        import gguf

    native = to_native(model)
    config, architecture = native.config, native.config.model_type
    if model.config.hidden_act not in GGUF_ACTIVATIONS[architecture]:
        computed = GGUF_ACTIVATIONS[architecture][0]
        raise ConversionError(f"llama.cpp's {architecture} computes {computed}, this model {model.config.hidden_act}")
    if architecture == "qwen3" and config.rope_parameters["rope_type"] != "default":
        raise ConversionError(f"RoPE scaling ({config.rope_parameters['rope_type']}) is not written into GGUF")
    tokens, kinds, merges = _gguf_vocabulary(tokenizer, config.vocab_size)

    writer = gguf.GGUFWriter(folder / GGUF_FILE, architecture)
    for name, theirs in GGUF_FIELDS[architecture].items():
        getattr(writer, f"add_{name}")(getattr(config, theirs))
    if architecture == "qwen3":
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType[kind] for kind in kinds])
    writer.add_token_merges(merges)
    writer.add_add_bos_token(False)
    for name in ("bos", "eos", "unk", "pad"):
        if (token_id := getattr(tokenizer, f"{name}_token_id")) is not None:
            getattr(writer, f"add_{name}_token_id")(token_id)
    _add_tensors(writer, native)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tensors(writer, native: PreTrainedModel) -> None:
    """The weights of a native model, under the names that the `gguf` package has for them."""
    from gguf import MODEL_ARCH, GGMLQuantizationType, LlamaFileType, get_tensor_name_map, quants

    config = native.config
    half = {torch.float16: "F16", torch.bfloat16: "BF16"}.get(native.dtype)
    writer.add_file_type(LlamaFileType[f"MOSTLY_{half}" if half else "ALL_F32"])
    names = get_tensor_name_map(MODEL_ARCH[config.model_type.upper()], config.num_hidden_layers)
    transposed = {f"{name}.weight" for name, module in native.named_modules() if isinstance(module, Conv1D)}
    for name, tensor in native.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        theirs = names.get_name(name, try_suffixes=(".weight", ".bias"))
        array = (tensor.t() if name in transposed else tensor).float().contiguous().numpy()
        # As llama.cpp's own converter: vectors and positions stay in full precision.
        is_full = half is None or array.ndim == 1 or theirs == "position_embd.weight"
        kind = GGMLQuantizationType["F32" if is_full else half]
        writer.add_tensor(theirs, quants.quantize(array, kind), raw_dtype=kind)


def _gguf_vocabulary(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> tuple[list[str], list[str], list[str]]:
    """Tokens by id, their kinds, and merges, for llama.cpp's byte-level BPE.

    A character of several bytes is there the result of merges, from left to right. They cannot meet another
    character's bytes, because in UTF-8 only a character's first byte looks like one.
    """
    from gguf.vocab import bytes_to_unicode

    if tokenizer.eos_token_id is None:
        raise ConversionError("llama.cpp needs an end-of-text token, and this tokenizer has none")
    units, merges = _bpe(tokenizer)
    if units is None:
        raise ConversionError("the tokenizer is neither character-level nor byte-level BPE like GPT-2's")
    alphabet, added = bytes_to_unicode(), tokenizer.added_tokens_decoder
    by_id = {index: token for token, index in tokenizer.get_vocab().items()}
    tokens, kinds = [], []
    for index in range(vocab_size):
        token, kind = by_id.get(index), "NORMAL"
        if token is None:  # a row of the embedding that no token uses
            token, kind = f"[PAD{index}]", "UNUSED"
        elif index in added:
            kind = "CONTROL" if added[index].special else "USER_DEFINED"
        elif units == "characters":
            token = "".join(alphabet[byte] for byte in token.encode())
            merges += [(token[:end], token[end]) for end in range(1, len(token))]
        tokens.append(token)
        kinds.append(kind)
    # An empty array cannot be written: a merge of two bytes that no UTF-8 text holds.
    merges = list(dict.fromkeys(map(tuple, merges))) or [(alphabet[0xFE], alphabet[0xFF])]
    return tokens, kinds, [" ".join(pair) for pair in merges]


def gguf_logits(folder: Path, config: PreTrainedConfig, input_ids: torch.Tensor) -> torch.Tensor:
    """By transformers' own GGUF loader; it overlooks the context and the head size in the file, so it gets a config."""
    settings = {"config": config, "dtype": torch.float32}
    with _quiet():
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF_FILE, **settings)
    return _logits(model, input_ids)


def llama_cpp_logits(folder: Path, input_ids: torch.Tensor) -> torch.Tensor:
    """By llama.cpp, with keys and values in full precision.

    Raises:
        ImportError: llama-cpp-python is not installed.
    """
    from llama_cpp import GGML_TYPE_F32, Llama

    ids = input_ids[0].tolist()
    settings = {"n_ctx": len(ids), "logits_all": True, "type_k": GGML_TYPE_F32, "type_v": GGML_TYPE_F32}
    engine = Llama(str(folder / GGUF_FILE), **settings, verbose=False)
    engine.eval(ids)
    return torch.tensor(engine.scores[: len(ids)])[None]


def write_onnx(model: GPTLiteForCausalLM, folder: Path) -> None:
    """`model.onnx` in full precision, for prompt and next tokens alike: ids, mask, positions and past keys and values
    in, logits and present keys and values out, all of any batch and length; by transformers' exporter.

    Raises:
        ConversionError: a package is not installed.
    """
    with _from_extra("ONNX"):
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
        from transformers.exporters.base import ExportedModel  # noqa: F401  which the exporter of 5.17 did not give
        from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

    with contextlib.suppress(ConversionError):
        model = to_native(model)  # a configuration that everybody knows
    model = copy.deepcopy(model).float()
    batch, past, tokens = 2, 3, 4  # the tracer takes 1 for a constant, and must not take one size for another
    with torch.no_grad():
        cache = model(torch.zeros(batch, past, dtype=torch.long), use_cache=True).past_key_values
    inputs = {
        "input_ids": torch.zeros(batch, tokens, dtype=torch.long),
        "attention_mask": torch.ones(batch, past + tokens, dtype=torch.long),
        "position_ids": torch.arange(past, past + tokens).repeat(batch, 1),
        "past_key_values": cache,
    }
    axis = torch.export.Dim.AUTO
    shapes = {name: {0: axis, 1: axis} for name in inputs}
    shapes["past_key_values"] = [{0: axis, 2: axis}] * (2 * model.config.num_hidden_layers)
    with _quiet():
        exported = OnnxExporter().export(model, inputs, OnnxConfig(dynamic=True, dynamic_shapes=shapes))
    exported.generation_config = model.generation_config
    exported.save_pretrained(folder)


def onnx_logits(folder: Path, input_ids: torch.Tensor) -> torch.Tensor:
    """By ONNX Runtime: the first half as a prompt, the second half after its past keys and values.

    Raises:
        ImportError: onnxruntime is not installed.
    """
    from onnxruntime import InferenceSession

    session = InferenceSession(folder / ONNX_FILE)
    past = {
        node.name: torch.zeros(len(input_ids), node.shape[1], 0, node.shape[3]).numpy()
        for node in session.get_inputs()
        if "past_key_values" in node.name
    }
    logits, length = [], 0
    for ids in input_ids.split((input_ids.shape[1] + 1) // 2, dim=1):
        positions = torch.arange(length, length + ids.shape[1]).expand(ids.shape)
        length += ids.shape[1]
        mask = torch.ones(len(ids), length, dtype=torch.long)
        feed = {"input_ids": ids.numpy(), "attention_mask": mask.numpy(), "position_ids": positions.numpy()}
        outputs = session.run(None, feed | past)
        outputs = dict(zip([node.name for node in session.get_outputs()], outputs, strict=True))
        logits.append(torch.from_numpy(outputs["logits"]))
        past = {name: outputs[name.replace("input.", "output.")] for name in past}
    return torch.cat(logits, dim=1)


def pretrained_logits(folder: Path, input_ids: torch.Tensor) -> torch.Tensor:
    """By the class of transformers that the folder holds."""
    return _logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), input_ids)


def _logits(model: PreTrainedModel, input_ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids).logits


def _bpe(tokenizer: PreTrainedTokenizerBase) -> tuple[str | None, list]:
    """What a BPE tokenizer starts from, "characters" (and goes no further) or "bytes" (as GPT-2's), and its merges."""
    state = json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else {"model": {"type": None}}
    model = state["model"]
    if model["type"] != "BPE" or model["byte_fallback"] or model["ignore_merges"] or state["normalizer"]:
        return None, []
    if state["pre_tokenizer"] is None and not model["merges"]:
        tokens = model["vocab"].keys() - tokenizer.get_added_vocab().keys()
        return ("characters" if all(len(token) == 1 for token in tokens) else None), []
    gpt2s = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    is_gpt2s = gpt2s.items() <= (state["pre_tokenizer"] or {}).items()
    return ("bytes" if is_gpt2s else None), model["merges"]


def _is_gpt2_tokenizer(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether it is the tokenizer that nanoGPT takes where it finds no meta.pkl; known by its size and a sample."""
    return len(tokenizer) == 50257 and tokenizer("Hello world<|endoftext|>")["input_ids"] == [15496, 995, 50256]


@contextlib.contextmanager
def _from_extra(what: str):
    try:
        yield
    except ImportError as error:
        raise ConversionError(
            f"{what} needs {error.name}: pip install --upgrade transformers 'gptlite[export]'"
        ) from error


@contextlib.contextmanager
def _quiet():
    """Stages, hints and bars of other libraries go to nobody; their errors are raised."""
    disabled = logging.root.manager.disable
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(disabled)
