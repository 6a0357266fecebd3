"""interchange/gguf.py: the weights, tokens and metadata of a GGUF file, and what llama.cpp computes from it."""

import copy
import itertools
import json
import os
import subprocess
import sys

import pytest
import torch
from helpers import (
    AWKWARD,
    load_saved,
    refused,
    save_model,
    shake,
    shaken,
    tokenizer_of_kind,
    train_tiny,
)
from tokenizers import Regex, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen3Config

from modeling_gptlite.interchange import Material, to_native, write
from modeling_gptlite.interchange.gguf import DTYPES, PRE_TOKENIZERS, gguf_logits, gguf_path, vocabulary
from scripts import convert
from tokenization import build_char_tokenizer


gguf = pytest.importorskip("gguf")
SPECIAL_TOKENS = ["<|endoftext|>", "<|pad|>", "<|unk|>"]


def exported(here, *flags):
    """The GGUF file of the model in the folder `in`."""
    convert.main(["--to", "gguf", "in", "out", *flags])
    return gguf_path(here / "out")


@pytest.mark.parametrize("tokenizer", ["char", "bpe"])
@pytest.mark.parametrize(("preset", "tied"), [("modern-1m", False), ("modern-1m", True), ("gpt2-124m", True)])
def test_a_file_holds_every_weight_and_transformers_computes_the_same(preset, tied, tokenizer, here, capsys):
    overrides = {"head_dim": 16, "num_key_value_heads": 2} if preset == "modern-1m" else {}
    model, _ = load_saved(save_model(here / "in", preset, tokenizer, tie_word_embeddings=tied, **overrides))
    reader = gguf.GGUFReader(exported(here))
    assert "GGUF loader: logits differ by at most" in capsys.readouterr().out
    ids = torch.randint(0, 40, (1, 32))
    assert_close(gguf_logits(here / "out", ids, model), model(ids).logits, atol=1e-5, rtol=1e-5)
    assert sum(tensor.n_elements for tensor in reader.tensors) == to_native(model).num_parameters()
    assert {tensor.tensor_type.name for tensor in reader.tensors} == {"F32"}


@pytest.mark.parametrize(("preset", "architecture"), [("modern-1m", "qwen3"), ("gpt2-124m", "gpt2")])
def test_the_metadata_describes_model_and_tokenizer(preset, architecture, here, capsys):
    overrides = {"head_dim": 16, "num_key_value_heads": 2} if preset == "modern-1m" else {}
    save_model(here / "in", preset, **overrides)
    (here / "in/run.json").write_text(json.dumps({"fine_tuned_from": None, "data": {"license": "cc0-1.0"}}))
    fields = gguf.GGUFReader(exported(here)).fields
    tokenizer = tokenizer_of_kind("char")
    expected = {
        "general.architecture": architecture,
        "general.name": "in",
        "general.license": "cc0-1.0",
        f"{architecture}.context_length": 32,
        f"{architecture}.block_count": 2,
        f"{architecture}.attention.head_count": 4,
        "tokenizer.ggml.eos_token_id": tokenizer.eos_token_id,
        "tokenizer.ggml.padding_token_id": tokenizer.pad_token_id,
        "tokenizer.ggml.add_bos_token": False,
    }
    if preset == "modern-1m":
        expected |= {"qwen3.attention.head_count_kv": 2, "qwen3.attention.key_length": 16, "qwen3.rope.freq_base": 1e4}
    assert {name: fields[name].contents() for name in expected} == expected


def test_a_model_of_conversations_keeps_its_chat_template(tmp_path):
    tokenizer = copy.deepcopy(tokenizer_of_kind("char"))
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    write(Material(shaken("modern-1m", vocab_size=len(tokenizer)), tokenizer), tmp_path, "gguf")
    fields = gguf.GGUFReader(gguf_path(tmp_path)).fields
    assert fields["tokenizer.chat_template"].contents() == tokenizer.chat_template


LLAMA = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5e4},
    "rms_norm_eps": 1e-5,
}


def save_native(folder, config, tokenizer=None):
    """A folder as transformers saves a model of its own, such as one that was fine-tuned here."""
    torch.manual_seed(0)
    model = shake(AutoModelForCausalLM.from_config(config))
    model.save_pretrained(folder)
    (tokenizer or tokenizer_of_kind("bpe")).save_pretrained(folder)
    return model


@pytest.mark.parametrize("head_dim", [8, 16])
@pytest.mark.parametrize("tied", [True, False])
def test_a_llama_folder_is_exported_with_equal_logits(tied, head_dim, here, capsys):
    model = save_native(here / "in", LlamaConfig(**LLAMA, head_dim=head_dim, tie_word_embeddings=tied))
    reader = gguf.GGUFReader(exported(here))
    settings = {"config": model.config, "dtype": torch.float32}
    loaded = AutoModelForCausalLM.from_pretrained("out", gguf_file="in-F32.gguf", **settings)
    ids = torch.arange(48)[None]
    assert_close(loaded(ids).logits, model(ids).logits, atol=1e-6, rtol=1e-6)
    assert sum(tensor.n_elements for tensor in reader.tensors) == model.num_parameters()
    expected = {
        "general.architecture": "llama",
        "llama.vocab_size": 320,
        "llama.context_length": 64,
        "llama.embedding_length": 32,
        "llama.feed_forward_length": 48,
        "llama.block_count": 2,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": head_dim,
        "llama.rope.dimension_count": head_dim,
        "llama.rope.freq_base": 5e4,
        "llama.attention.layer_norm_rms_epsilon": pytest.approx(1e-5),
        "tokenizer.ggml.pre": "gpt-2",
    }
    assert {name: reader.fields[name].contents() for name in expected} == expected


def test_rows_of_queries_and_keys_are_in_the_order_of_llama_cpp(here, capsys):
    model = save_native(here / "in", LlamaConfig(**LLAMA))
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(exported(here)).tensors}
    for ours, theirs in {"q_proj": "attn_q", "k_proj": "attn_k"}.items():
        weight = model.get_parameter(f"model.layers.1.self_attn.{ours}.weight").detach().numpy()
        first_head = weight[[0, 4, 1, 5, 2, 6, 3, 7]]  # what is rotated together is beside each other
        assert (tensors[f"blk.1.{theirs}.weight"][:8] == first_head).all()
    value = model.get_parameter("model.layers.1.self_attn.v_proj.weight").detach().numpy()
    assert (tensors["blk.1.attn_v.weight"] == value).all()


def test_the_other_native_classes_need_no_flag_either(here, capsys):
    sizes = {"vocab_size": 320, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}
    save_native(here / "in", GPT2Config(**sizes))
    assert gguf.GGUFReader(exported(here)).fields["general.architecture"].contents() == "gpt2"
    save_native(here / "qwen3", Qwen3Config(**LLAMA))
    convert.main(["--to", "gguf", "qwen3", "qwen3-gguf"])
    assert gguf_path(here / "qwen3-gguf").name == "qwen3-F32.gguf"


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_a_pre_tokenizer_is_known_by_what_it_does(name, here, capsys):
    tokenizer = copy.deepcopy(tokenizer_of_kind("bpe"))
    tokenizer.backend_tokenizer.pre_tokenizer = PRE_TOKENIZERS[name]
    save_native(here / "in", LlamaConfig(**LLAMA), tokenizer)
    assert gguf.GGUFReader(exported(here)).fields["tokenizer.ggml.pre"].contents() == name


def test_added_tokens_are_typed_and_a_beginning_of_text_is_added_where_the_tokenizer_does(here, capsys):
    tokenizer = copy.deepcopy(tokenizer_of_kind("bpe"))
    tokenizer.add_tokens(["<think>"])
    begin = [(tokenizer.bos_token, tokenizer.bos_token_id)]
    processor = TemplateProcessing(single=f"{tokenizer.bos_token} $A", special_tokens=begin)
    tokenizer.backend_tokenizer.post_processor = processor
    save_native(here / "in", LlamaConfig(**{**LLAMA, "vocab_size": 321}), tokenizer)
    fields = gguf.GGUFReader(exported(here)).fields
    assert fields["tokenizer.ggml.add_bos_token"].contents() is True
    names, types = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "token_type"))
    types = dict(zip(names, types, strict=True))
    assert types["<think>"] == gguf.TokenType.USER_DEFINED
    assert types["<|endoftext|>"] == gguf.TokenType.CONTROL


def test_a_tokenizer_that_leaves_out_unknown_letters_adds_no_beginning(tmp_path):
    tokenizer = build_char_tokenizer("бвг")
    tokenizer.backend_tokenizer.model.unk_token = None
    write(Material(shaken("modern-1m", vocab_size=len(tokenizer)), tokenizer), tmp_path, "gguf")
    assert gguf.GGUFReader(gguf_path(tmp_path)).fields["tokenizer.ggml.add_bos_token"].contents() is False


BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
SPLITS_OF_OTHERS = {
    "with a space before the text": pre_tokenizers.ByteLevel(add_prefix_space=True),
    "without a pattern": pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    "three digits": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated"), BYTES]),
}


@pytest.mark.parametrize("pre_tokenizer", SPLITS_OF_OTHERS.values(), ids=SPLITS_OF_OTHERS)
def test_a_tokenizer_that_splits_text_otherwise_is_refused(pre_tokenizer, here, capsys):
    tokenizer = copy.deepcopy(tokenizer_of_kind("bpe"))
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizer
    save_native(here / "in", LlamaConfig(**LLAMA), tokenizer)
    told = ["gpt-2, smollm, qwen2", "convert_hf_to_gguf.py"]
    capsys.readouterr()
    refused(convert.main, "--to=gguf", "in", "out", capsys=capsys, told=told)
    assert [path.name for path in here.iterdir()] == ["in"]


def byte_level_bpe(text, tokens, merges):
    """The ids that an engine finds for `text`: bytes, then the earliest merge again and again."""
    from gguf.vocab import bytes_to_unicode

    parts = [bytes_to_unicode()[byte] for byte in text.encode()]
    ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(merges)}
    while pairs := [(ranks[pair], i) for i, pair in enumerate(itertools.pairwise(parts)) if pair in ranks]:
        _, first = min(pairs)
        parts[first : first + 2] = [parts[first] + parts[first + 1]]
    return [tokens.index(part) for part in parts]


def test_characters_of_several_bytes_are_tokenized_by_merges(here, capsys):
    tokenizer = tokenizer_of_kind("char")
    save_model(here / "in", "modern-1m", vocab_size=len(tokenizer) + 2)
    fields = gguf.GGUFReader(exported(here)).fields
    names = ("tokens", "merges", "token_type", "model", "pre")
    tokens, merges, kinds, model, pre = (fields[f"tokenizer.ggml.{name}"].contents() for name in names)
    assert (model, pre) == ("gpt2", "gpt-2")
    assert len(set(tokens)) == len(tokens) == len(tokenizer) + 2
    text = AWKWARD[-60:]
    assert byte_level_bpe(text, tokens, merges) == tokenizer(text)["input_ids"]
    assert tokens[-5:] == [*SPECIAL_TOKENS, f"[PAD{len(tokens) - 2}]", f"[PAD{len(tokens) - 1}]"]
    kind = gguf.TokenType
    assert kinds == [kind.NORMAL] * (len(tokens) - 5) + [kind.CONTROL] * 3 + [kind.UNUSED] * 2


def test_an_ascii_vocabulary_has_one_merge_that_no_text_contains():
    found = vocabulary(build_char_tokenizer("abc"), 6)
    assert found.tokens == ["a", "b", "c", *SPECIAL_TOKENS]
    assert found.merges == ["þ ÿ"]


@pytest.mark.parametrize(("dtype", "kind"), [(torch.bfloat16, "BF16"), (torch.float16, "F16")])
@pytest.mark.parametrize("how", ["as saved", "--dtype"])
def test_half_precision_is_for_matrices(how, dtype, kind, here, capsys):
    save_model(here / "in", "gpt2-124m", dtype=dtype if how == "as saved" else torch.float32)
    path = exported(here, *(["--dtype", kind.lower()] if how == "--dtype" else []))
    assert path.name == f"in-{kind}.gguf"
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    kinds = {name: tensor.tensor_type.name for name, tensor in tensors.items()}
    assert kinds["blk.1.ffn_up.weight"] == kinds["token_embd.weight"] == kind
    assert kinds["blk.1.ffn_up.bias"] == kinds["position_embd.weight"] == "F32"
    up = tensors["blk.1.ffn_up.weight"]
    exact = load_saved(here / "in")[0].model.layers[1].mlp.up_proj.weight.detach().to(dtype).float().numpy()
    assert (gguf.quants.dequantize(up.data, up.tensor_type) == exact).all()


def test_q8_0_stores_eight_bits_and_keeps_rows_that_do_not_divide_in_half_precision(here, capsys):
    save_model(here / "in", "modern-1m", hidden_size=64, intermediate_size=80)
    path = exported(here, "--dtype", "q8_0")
    assert path.name == "in-Q8_0.gguf"
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}
    assert kinds["blk.0.attn_q.weight"] == kinds["blk.0.ffn_up.weight"] == kinds["token_embd.weight"] == "Q8_0"
    assert kinds["blk.0.ffn_down.weight"] == "F16"  # rows of 80, and a block has 32
    assert kinds["blk.0.attn_norm.weight"] == "F32"


def llama_cpp_python():
    """A Python that has llama-cpp-python: this one, or that of `LLAMA_CPP_PYTHON`."""
    python = os.environ.get("LLAMA_CPP_PYTHON", sys.executable)
    if subprocess.run([python, "-c", "import llama_cpp"], capture_output=True).returncode:
        pytest.skip("needs llama-cpp-python, here or in the Python that LLAMA_CPP_PYTHON names")
    return python


def in_llama_cpp(code: str, path, **values):
    """What `code` prints as JSON, run with `engine` and `values`; greedy decoding is `greedy(ids, count)`."""
    prelude = f"""
import json
from llama_cpp import GGML_TYPE_F32, Llama
cache = {{"n_ctx": 128, "type_k": GGML_TYPE_F32, "type_v": GGML_TYPE_F32}}
engine = Llama({str(path)!r}, **cache, n_batch=1, n_ubatch=1, verbose=False)
def greedy(ids, count):
    tokens = engine.generate(ids, top_k=1, temp=0.0, repeat_penalty=1.0)
    return [next(tokens) for _ in range(count)]
"""
    assigned = "".join(f"{name} = {value!r}\n" for name, value in values.items())
    done = subprocess.run([llama_cpp_python(), "-c", prelude + assigned + code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def greedy_in_pytorch(folder, prompt, count):
    model, tokenizer = load_saved(folder)
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    settings = {"do_sample": False, "max_new_tokens": count, "min_new_tokens": count, "pad_token_id": 0}
    return ids[0].tolist(), model.generate(ids, **settings)[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("tokenizer", ["char", "bpe"])
@pytest.mark.parametrize("preset", ["modern-1m", "gpt2-124m"])
def test_llama_cpp_writes_the_same_100_greedy_tokens(preset, tokenizer, here, capsys):
    llama_cpp_python()
    save_model(here / "in", preset, tokenizer, hidden_size=64, max_position_embeddings=128, eos_token_id=None)
    ids, expected = greedy_in_pytorch(here / "in", "12 green bottles", 100)
    assert in_llama_cpp("print(json.dumps(greedy(ids, 100)))", exported(here), ids=ids) == expected


def test_llama_cpp_writes_the_same_100_greedy_tokens_as_a_trained_model(text_file, here, capsys):
    llama_cpp_python()
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 128}
    train_tiny(text_file, here / "in", f"--model_overrides={json.dumps(sizes)}")
    ids, expected = greedy_in_pytorch(here / "in", "12 green", 100)
    assert in_llama_cpp("print(json.dumps(greedy(ids, 100)))", exported(here), ids=ids) == expected


@pytest.mark.parametrize("dtype", ["f32", "f16", "q8_0"])
def test_llama_cpp_gives_the_logits_of_the_model_within_the_rounding_of_the_weights(dtype, here, capsys):
    save_model(here / "in", "modern-1m", hidden_size=64)
    path = exported(here, "--dtype", dtype)
    ids = torch.arange(20).tolist()
    expected = load_saved(here / "in")[0](torch.tensor([ids])).logits[0]
    code = """
engine = Llama(engine.model_path, **cache, n_batch=1, n_ubatch=1, logits_all=True, verbose=False)
engine.eval(ids)
print(json.dumps(engine.scores[:20].tolist()))
"""
    difference = (torch.tensor(in_llama_cpp(code, path, ids=ids)) - expected).abs().max() / expected.abs().max()
    assert difference <= max(1e-5, DTYPES[dtype])


@pytest.mark.parametrize("tokenizer", ["char", "bpe"])
def test_llama_cpp_tokenizes_the_same(tokenizer, here, capsys):
    llama_cpp_python()
    save_model(here / "in", "modern-1m", tokenizer)
    text = AWKWARD[-200:] + "<|endoftext|>"
    code = """
ids = engine.tokenize(text.encode(), add_bos=False, special=True)
print(json.dumps([ids, engine.detokenize(ids, special=True).decode()]))
"""
    assert in_llama_cpp(code, exported(here), text=text) == [tokenizer_of_kind(tokenizer)(text)["input_ids"], text]


def test_an_engine_that_is_not_installed_is_reported(here, capsys, monkeypatch):
    save_model(here / "in", "modern-1m")
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    exported(here)
    message = "not checked in llama.cpp, which is not installed: pip install llama-cpp-python"
    assert message in capsys.readouterr().out.splitlines()
