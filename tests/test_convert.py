"""`scripts.convert`: files of other engines, what each engine computes from them, and mistakes in one line."""

import itertools
import json
import os
import pickle
import shutil
import sys

import pytest
import torch
from conftest import TEXT
from test_commands import call, files, refused
from test_conversion import nanogpt_checkpoint, nanogpt_logits, shaken
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from modeling_gptlite import formats
from scripts import convert
from tokenization import build_bpe_tokenizer, build_char_tokenizer, build_word_tokenizer


# Characters of one to four bytes; some are letters of the alphabet that stands for bytes in GGUF.
AWKWARD = TEXT + "\té ĉĠ—‘日本🎉"
TOKENIZERS = {
    "char": build_char_tokenizer(AWKWARD),
    "bpe": build_bpe_tokenizer(AWKWARD, vocab_size=320),
    "word": build_word_tokenizer(TEXT, vocab_size=40),
    "bytes": build_char_tokenizer(TEXT, byte_fallback=True),
    "bare": build_char_tokenizer(TEXT, special_tokens=False),
}
SPECIAL_TOKENS = ["<|endoftext|>", "<|pad|>", "<|unk|>"]
CHARACTERS = sorted(set(TEXT))


def save(folder, preset, tokenizer="char", dtype=torch.float32, **overrides):
    tokenizer = TOKENIZERS[tokenizer]
    overrides = {"vocab_size": len(tokenizer), "bos_token_id": tokenizer.bos_token_id, **overrides}
    shaken(preset, **overrides).to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_nanogpt(folder, tokens=None, **checkpoint):
    """A folder as nanoGPT's, with its meta.pkl put beside the checkpoint."""
    folder.mkdir(parents=True)
    tokens = CHARACTERS if tokens is None else tokens
    checkpoint = nanogpt_checkpoint(**{"vocab_size": len(tokens), **checkpoint})
    torch.save(checkpoint, folder / "ckpt.pt")
    meta = {"vocab_size": len(tokens), "itos": dict(enumerate(tokens)), "stoi": {t: i for i, t in enumerate(tokens)}}
    (folder / "meta.pkl").write_bytes(pickle.dumps(meta))
    return checkpoint


def load(folder, **kwargs):
    return AutoModelForCausalLM.from_pretrained(folder, **kwargs), AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("preset", "other", "class_name"),
    [
        ("modern-1m", "qwen3", "Qwen3ForCausalLM"),
        ("gpt2-124m", "gpt2", "GPT2LMHeadModel"),
        ("nanogpt-10m", "gpt2", "GPT2LMHeadModel"),
        ("nanogpt-10m", "nanogpt", None),
    ],
)
def test_a_model_goes_out_and_comes_back_with_its_tokenizer(preset, other, class_name, place, capsys):
    model, tokenizer = load(save(place / "in", preset))
    convert.main(["--to", other, "in", "deep/out"])
    assert "logits differ by at most 0.0e+00" in capsys.readouterr().out
    if class_name:
        assert json.loads((place / "deep/out/config.json").read_text())["architectures"] == [class_name]
        assert '"PreTrainedTokenizerFast"' in (place / "deep/out/tokenizer_config.json").read_text()
        assert not list((place / "deep/out").glob("*.py"))
    convert.main(["--from", other, "deep/out", "back"])
    back, back_tokenizer = load(place / "back")
    assert torch.equal(back(torch.arange(20)[None]).logits, model(torch.arange(20)[None]).logits)
    assert back_tokenizer.get_vocab() == tokenizer.get_vocab()
    assert back_tokenizer("12 green—🎉<|endoftext|>") == tokenizer("12 green—🎉<|endoftext|>")
    assert {path.name for path in place.iterdir()} == {"in", "deep", "back"}


def test_half_precision_stays_half_precision(place, capsys):
    save(place / "in", "modern-1m", dtype=torch.bfloat16)
    convert.main(["--to", "qwen3", "in", "out"])
    convert.main(["--from", "qwen3", "out", "back"])
    assert load(place / "out")[0].dtype == load(place / "back")[0].dtype == torch.bfloat16


@pytest.mark.parametrize("where", ["beside", "--meta"])
def test_a_nanogpt_checkpoint_comes_in_with_its_characters(where, place, capsys):
    checkpoint = save_nanogpt(place / "in", CHARACTERS[::-1])  # the order is the file's, not ours
    argv = ["--from", "nanogpt", "in", "out"]
    if where == "--meta":
        (place / "in/meta.pkl").rename(place / "elsewhere.pkl")
        argv = ["--from=nanogpt", "in/ckpt.pt", "out", "--meta=elsewhere.pkl"]
    convert.main(argv)
    model, tokenizer = load(place / "out")
    ids = tokenizer(TEXT[:30], return_tensors="pt")["input_ids"]
    assert ids[0].tolist() == [CHARACTERS[::-1].index(character) for character in TEXT[:30]]
    assert tokenizer.decode(ids[0]) == TEXT[:30]
    assert_close(model(ids).logits, nanogpt_logits(checkpoint, ids), atol=1e-5, rtol=1e-5)
    assert len(model.generate(ids, max_new_tokens=40)[0]) == 70  # past the context
    assert (model.generation_config.temperature, model.generation_config.top_k) == (0.8, 200)


def test_a_nanogpt_checkpoint_without_characters_takes_a_tokenizer(place, capsys):
    save_nanogpt(place / "in", vocab_size=384)
    (place / "in/meta.pkl").unlink()
    TOKENIZERS["bpe"].save_pretrained(place / "tokenizer")
    refused(convert.main, "--from=nanogpt", "in", "out", capsys=capsys, told=["meta.pkl", "--meta", "--tokenizer"])
    convert.main(["--from", "nanogpt", "in", "out", "--tokenizer", "tokenizer"])
    model, tokenizer = load(place / "out")
    assert model.config.vocab_size == 384
    assert model.config.bos_token_id == tokenizer.bos_token_id == 317
    assert tokenizer.get_vocab() == TOKENIZERS["bpe"].get_vocab()


def test_what_nanogpt_reads_is_plain_python_and_names_its_data_folder(place, capsys):
    save(place / "in", "nanogpt-10m")
    convert.main(["--to", "nanogpt", "in", "out"])
    assert "data/out" in capsys.readouterr().out
    checkpoint = torch.load(place / "out/ckpt.pt", weights_only=True)
    assert set(checkpoint["model_args"]) == {
        "n_layer",
        "n_head",
        "n_embd",
        "block_size",
        "bias",
        "vocab_size",
        "dropout",
    }
    assert checkpoint["config"] == {"dataset": "out"}
    meta = pickle.loads((place / "out/meta.pkl").read_bytes())
    assert meta["itos"] == {index: token for token, index in meta["stoi"].items()}
    assert [meta["stoi"][character] for character in "12 —"] == TOKENIZERS["char"]("12 —")["input_ids"]
    assert [meta["itos"][index] for index in range(meta["vocab_size"] - 3, meta["vocab_size"])] == SPECIAL_TOKENS


def test_gpt2s_tokenizer_needs_no_meta_in_nanogpt(place, capsys, monkeypatch):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = {15496: "Hello", 995: "Ġworld", 50256: "<|endoftext|>"}
    backend = Tokenizer(models.WordLevel({words.get(index, f"#{index}"): index for index in range(50257)}, "#0"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    monkeypatch.setitem(
        TOKENIZERS, "gpt2", PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")
    )
    save(place / "in", "nanogpt-10m", "gpt2", vocab_size=50304, hidden_size=8, num_hidden_layers=1)
    convert.main(["--to", "nanogpt", "in", "out"])
    assert [path.name for path in (place / "out").iterdir()] == ["ckpt.pt"]


@pytest.mark.parametrize("tokenizer", ["char", "bpe"])
@pytest.mark.parametrize(("preset", "tied"), [("modern-1m", False), ("modern-1m", True), ("gpt2-124m", True)])
def test_a_gguf_file_holds_every_weight_and_transformers_computes_the_same(preset, tied, tokenizer, place, capsys):
    gguf = pytest.importorskip("gguf")
    from modeling_gptlite.conversion import to_native

    overrides = {"head_dim": 16, "num_key_value_heads": 2} if preset == "modern-1m" else {}
    model, _ = load(save(place / "in", preset, tokenizer, tie_word_embeddings=tied, **overrides))
    convert.main(["--to", "gguf", "in", "out"])
    assert "GGUF loader: logits differ by at most" in capsys.readouterr().out
    ids = torch.randint(0, 40, (1, 32))
    logits = formats.gguf_logits(place / "out", to_native(model).config, ids)
    assert_close(logits, model(ids).logits, atol=1e-5, rtol=1e-5)
    reader = gguf.GGUFReader(place / "out/model.gguf")
    written = sum(tensor.n_elements for tensor in reader.tensors)
    native = to_native(model)
    assert written == native.num_parameters()
    assert {tensor.tensor_type.name for tensor in reader.tensors} == {"F32"}
    expected = {
        "general.architecture": native.config.model_type,
        f"{native.config.model_type}.context_length": 32,
        f"{native.config.model_type}.block_count": 2,
        f"{native.config.model_type}.attention.head_count": 4,
        "tokenizer.ggml.eos_token_id": TOKENIZERS[tokenizer].eos_token_id,
        "tokenizer.ggml.padding_token_id": TOKENIZERS[tokenizer].pad_token_id,
        "tokenizer.ggml.add_bos_token": False,
    }
    if preset == "modern-1m":
        expected |= {"qwen3.attention.head_count_kv": 2, "qwen3.attention.key_length": 16, "qwen3.rope.freq_base": 1e4}
    assert {name: reader.fields[name].contents() for name in expected} == expected


def byte_level_bpe(text, tokens, merges):
    """The ids that an engine finds for `text`: bytes, then the earliest merge again and again."""
    from gguf.vocab import bytes_to_unicode

    parts = [bytes_to_unicode()[byte] for byte in text.encode()]
    ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(merges)}
    while pairs := [(ranks[pair], i) for i, pair in enumerate(itertools.pairwise(parts)) if pair in ranks]:
        _, first = min(pairs)
        parts[first : first + 2] = [parts[first] + parts[first + 1]]
    return [tokens.index(part) for part in parts]


def test_the_characters_of_a_gguf_file_are_found_again(place, capsys):
    gguf = pytest.importorskip("gguf")
    save(place / "in", "modern-1m", vocab_size=len(TOKENIZERS["char"]) + 2)
    convert.main(["--to", "gguf", "in", "out"])
    fields = gguf.GGUFReader(place / "out/model.gguf").fields
    names = ("tokens", "merges", "token_type", "model", "pre")
    tokens, merges, kinds, model, pre = (fields[f"tokenizer.ggml.{name}"].contents() for name in names)
    assert (model, pre) == ("gpt2", "gpt-2")
    assert len(set(tokens)) == len(tokens) == len(TOKENIZERS["char"]) + 2
    text = AWKWARD[-60:]
    assert byte_level_bpe(text, tokens, merges) == TOKENIZERS["char"](text)["input_ids"]
    assert tokens[-5:] == [*SPECIAL_TOKENS, f"[PAD{len(tokens) - 2}]", f"[PAD{len(tokens) - 1}]"]
    kind = gguf.TokenType
    assert kinds == [kind.NORMAL] * (len(tokens) - 5) + [kind.CONTROL] * 3 + [kind.UNUSED] * 2


def test_a_vocabulary_of_ascii_has_one_merge_that_no_text_meets(place, capsys):
    pytest.importorskip("gguf")
    tokens, _, merges = formats._gguf_vocabulary(build_char_tokenizer("abc"), 6)
    assert tokens == ["a", "b", "c", *SPECIAL_TOKENS]
    assert merges == ["þ ÿ"]


@pytest.mark.parametrize(("dtype", "kind"), [(torch.bfloat16, "BF16"), (torch.float16, "F16")])
def test_a_gguf_file_keeps_half_precision_for_matrices(dtype, kind, place, capsys):
    gguf = pytest.importorskip("gguf")
    model, _ = load(save(place / "in", "gpt2-124m", dtype=dtype))
    convert.main(["--to", "gguf", "in", "out"])
    reader = gguf.GGUFReader(place / "out/model.gguf")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds["blk.1.ffn_up.weight"] == kinds["token_embd.weight"] == kind
    assert kinds["blk.1.ffn_up.bias"] == kinds["position_embd.weight"] == "F32"
    (up,) = (tensor for tensor in reader.tensors if tensor.name == "blk.1.ffn_up.weight")
    exact = model.model.layers[1].mlp.up_proj.weight.detach().float().numpy()
    assert (gguf.quants.dequantize(up.data, up.tensor_type) == exact).all()


@pytest.mark.parametrize("tokenizer", ["char", "bpe"])
@pytest.mark.parametrize("preset", ["modern-1m", "gpt2-124m"])
def test_llama_cpp_computes_and_reads_the_same(preset, tokenizer, place, capsys):
    llama_cpp = pytest.importorskip("llama_cpp")
    pytest.importorskip("gguf")
    save(place / "in", preset, tokenizer, hidden_size=64)
    convert.main(["--to", "gguf", "in", "out"])
    assert "llama.cpp: logits differ by at most" in capsys.readouterr().out
    engine = llama_cpp.Llama(str(place / "out/model.gguf"), vocab_only=True, verbose=False)
    text = AWKWARD[-200:] + "<|endoftext|>"
    ids = engine.tokenize(text.encode(), add_bos=False, special=True)
    assert ids == TOKENIZERS[tokenizer](text)["input_ids"]
    assert engine.detokenize(ids, special=True).decode() == text


def exporter():
    pytest.importorskip("transformers", minversion="5.23")
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)


@pytest.mark.parametrize(
    ("preset", "overrides"), [("nanogpt-10m", {}), ("modern-1m", {"norm_type": "layernorm"})], ids=["native", "our own"]
)
def test_an_onnx_graph_takes_padded_batches_and_goes_on_from_its_past(preset, overrides, place, capsys):
    exporter()
    import onnxruntime

    model, _ = load(save(place / "in", preset, **overrides))
    convert.main(["--to", "onnx", "in", "out"])
    assert "ONNX Runtime: logits differ by at most" in capsys.readouterr().out
    assert {"model.onnx", "config.json", "tokenizer.json", "generation_config.json"} <= set(os.listdir("out"))
    session = onnxruntime.InferenceSession("out/model.onnx")
    past = {
        node.name: torch.zeros(2, node.shape[1], 0, node.shape[3]).numpy()
        for node in session.get_inputs()
        if "past" in node.name
    }
    ids, mask = torch.randint(0, 30, (2, 6)), torch.ones(2, 6, dtype=torch.long)
    mask[0, :3] = 0
    expected = model.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False, pad_token_id=0)
    text, new = ids, ids
    for _ in range(8):
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -new.shape[1] :]
        feed = {"input_ids": new.numpy(), "attention_mask": mask.numpy(), "position_ids": positions.numpy()}
        outputs = session.run(None, feed | past)
        outputs = dict(zip([node.name for node in session.get_outputs()], outputs, strict=True))
        past = {name: outputs[name.replace("input.", "output.")] for name in past}
        new = torch.from_numpy(outputs["logits"])[:, -1:].argmax(-1)
        text, mask = torch.cat([text, new], 1), torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], 1)
    assert torch.equal(text, expected)


def test_a_result_beyond_rounding_is_deleted_and_the_command_fails(place, capsys, monkeypatch):
    save(place / "in", "modern-1m")
    saved = AutoModelForCausalLM.from_pretrained("in")
    with torch.no_grad():
        saved.lm_head.weight[3] += 0.01
    monkeypatch.setattr("modeling_gptlite.conversion.to_qwen3", lambda model: saved)
    code, out, err = call(convert.main, "--to=qwen3", "in", "new/out", capsys=capsys)
    assert code.startswith("error: the result is wrong, and was deleted")  # which Python prints, and exits with 1
    assert out == err == ""
    assert [path.name for path in place.iterdir()] == ["in"]
    convert.main(["--to=qwen3", "in", "new/out", "--check", "false"])
    assert "logits" not in capsys.readouterr().out
    assert (place / "new/out/model.safetensors").exists()


def test_an_engine_that_is_not_installed_is_named(place, capsys, monkeypatch):
    pytest.importorskip("gguf")
    save(place / "in", "modern-1m")
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    convert.main(["--to=gguf", "in", "out"])
    told = "not checked in llama.cpp, which is not installed: pip install llama-cpp-python"
    assert told in capsys.readouterr().out.splitlines()


class Payload:
    """A pickle that runs code where it is loaded carelessly."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.fixture(scope="module")
def museum(tmp_path_factory):
    """A folder with everything that somebody can get wrong; the commands leave it as it is."""
    place = tmp_path_factory.mktemp("museum")
    save(place / "modern", "modern-1m")
    save(place / "classic", "classic-10m")
    save(place / "nano", "nanogpt-10m")
    save(place / "gpt2ish", "gpt2-124m", "word")
    save(place / "byteful", "gpt2-124m", "bytes")
    save(place / "bare", "gpt2-124m", "bare")
    save(place / "words", "nanogpt-10m", "word")
    rope = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
    save(place / "scaled", "modern-1m", rope_parameters=rope)
    save(place / "toofew", "modern-1m", vocab_size=40)
    save_nanogpt(place / "out-char")
    save_nanogpt(place / "multi", ["ab", *CHARACTERS[1:]])
    save_nanogpt(place / "twice", [CHARACTERS[1], *CHARACTERS[1:]])
    save_nanogpt(place / "small", vocab_size=10)
    whole = (place / "out-char/ckpt.pt").read_bytes()
    (place / "half.pt").write_bytes(whole[: len(whole) // 2])
    (place / "empty.pt").write_bytes(b"")
    (place / "text.pt").write_text("no checkpoint")
    torch.save({**nanogpt_checkpoint(), "extra": Payload()}, place / "code.pt")
    torch.save([1, 2], place / "list.pt")
    torch.save({**nanogpt_checkpoint(), "model": {}}, place / "hollow.pt")
    (place / "code.pkl").write_bytes(pickle.dumps({"itos": Payload()}))
    (place / "list.pkl").write_bytes(pickle.dumps([1, 2]))
    (place / "gaps.pkl").write_bytes(pickle.dumps({"itos": {0: "a", 2: "b"}}))
    (place / "half.pkl").write_bytes((place / "out-char/meta.pkl").read_bytes()[:40])
    (place / "a_file").write_text("")
    (place / "empty").mkdir()
    damage(save(place / "lacking", "modern-1m"), lambda weights: weights.pop("lm_head.weight"))
    damage(save(place / "toomuch", "modern-1m"), lambda weights: weights.update(extra=torch.ones(1)))
    shutil.copytree(place / "modern", place / "truncated")
    os.truncate(place / "truncated/model.safetensors", 2000)
    return place


def damage(folder, change):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


MISTAKES = {
    "nothing to do": (["modern", "OUT"], ["--from", "--to", "nothing to convert"]),
    "no such source": (["--to=gguf", "nowhere", "OUT"], ["nowhere"]),
    "no such format": (["--to=gpt3", "modern", "OUT"], ["gpt3", "onnx"]),
    "misspelt flag": (["--too=gguf", "modern", "OUT"], ["--too", "did you mean 'to'"]),
    "no OUT": (["--to=gguf", "modern"], ["OUT"]),
    "OUT is full": (["--to=gguf", "modern", "classic"], ["classic exists already"]),
    "OUT is a file": (["--to=gguf", "modern", "a_file"], ["a_file exists already"]),
    "OUT is in a file": (["--to=gguf", "modern", "a_file/OUT"], ["a_file/OUT"]),
    "a file as a model": (["--to=gguf", "a_file", "OUT"], ["a_file is a file", "folder"]),
    "an empty folder as a model": (["--to=gguf", "empty", "OUT"], ["empty"]),
    "meta without nanoGPT": (["--to=gguf", "--meta=gaps.pkl", "modern", "OUT"], ["--meta", "--from nanogpt"]),
    "another class": (["--from=gpt2", "modern", "OUT"], ["GPTLiteForCausalLM", "--from gptlite"]),
    "missing weight": (["--to=qwen3", "lacking", "OUT"], ["missing", "lm_head.weight"]),
    "extra weight": (["--to=qwen3", "toomuch", "OUT"], ["unexpected", "extra"]),
    "truncated weights": (["--to=qwen3", "truncated", "OUT"], ["truncated"]),
    "tokenizer too large": (["--to=qwen3", "toofew", "OUT"], ["the model 40"]),
    "no such checkpoint": (["--from=nanogpt", "nowhere", "OUT"], ["nowhere"]),
    "folder without checkpoint": (["--from=nanogpt", "empty", "OUT"], ["empty/ckpt.pt"]),
    "half a checkpoint": (["--from=nanogpt", "half.pt", "OUT"], ["half.pt is not a whole file"]),
    "empty checkpoint": (["--from=nanogpt", "empty.pt", "OUT"], ["empty.pt is not a whole file"]),
    "text": (["--from=nanogpt", "text.pt", "OUT"], ["text.pt is not a whole file"]),
    "code in a checkpoint": (["--from=nanogpt", "code.pt", "OUT"], ["code.pt", "could run code"]),
    "list as a checkpoint": (["--from=nanogpt", "list.pt", "OUT"], ["list.pt holds a list"]),
    "no weights": (["--from=nanogpt", "hollow.pt", "OUT"], ["lacks"]),
    "code in meta.pkl": (["--from=nanogpt", "out-char", "OUT", "--meta=code.pkl"], ["code.pkl", "posix.mkdir"]),
    "list as meta.pkl": (["--from=nanogpt", "out-char", "OUT", "--meta=list.pkl"], ["list.pkl has no itos"]),
    "gaps in meta.pkl": (["--from=nanogpt", "out-char", "OUT", "--meta=gaps.pkl"], ["gaps.pkl has no itos"]),
    "half a meta.pkl": (["--from=nanogpt", "out-char", "OUT", "--meta=half.pkl"], ["half.pkl is not"]),
    "no such meta.pkl": (["--from=nanogpt", "out-char", "OUT", "--meta=no.pkl"], ["no.pkl"]),
    "token of two characters": (["--from=nanogpt", "multi", "OUT"], ["single characters", "'ab'"]),
    "character twice": (["--from=nanogpt", "twice", "OUT"], ["each character once"]),
    "more characters than rows": (["--from=nanogpt", "small", "OUT"], ["the model 10"]),
    "no such tokenizer": (["--from=nanogpt", "out-char", "OUT", "--tokenizer=empty"], ["tokenizer of 'empty'"]),
    "classic as GPT-2": (["--to=gpt2", "classic", "OUT"], ["head has no bias", "hidden_size (32)"]),
    "modern as GPT-2": (["--to=gpt2", "modern", "OUT"], ["position_embedding_type='learned'"]),
    "classic as nanoGPT": (["--to=nanogpt", "classic", "OUT"], ["hidden_act='gelu'", "'relu'"]),
    "words as nanoGPT": (["--to=nanogpt", "words", "OUT"], ["nanoGPT knows characters"]),
    "exact GELU as GGUF": (["--to=gguf", "nano", "OUT"], ["gpt2 computes gelu_new", "gelu"]),
    "RoPE scaling as GGUF": (["--to=gguf", "scaled", "OUT"], ["RoPE scaling (linear)"]),
    "words as GGUF": (["--to=gguf", "gpt2ish", "OUT"], ["neither character-level nor byte-level"]),
    "byte fallback as GGUF": (["--to=gguf", "byteful", "OUT"], ["neither character-level nor byte-level"]),
    "no end of text as GGUF": (["--to=gguf", "bare", "OUT"], ["end-of-text token"]),
}


@pytest.mark.parametrize(("argv", "told"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(argv, told, museum, monkeypatch, capsys):
    if "--to=gguf" in argv:
        pytest.importorskip("gguf")
    monkeypatch.chdir(museum)
    before = files(museum)
    refused(convert.main, *argv, capsys=capsys, told=told)
    assert files(museum) == before


@pytest.mark.parametrize(("target", "package"), [("gguf", "gguf"), ("onnx", "onnx"), ("onnx", "onnxscript")])
def test_a_missing_package_is_named_with_its_extra(target, package, place, capsys, monkeypatch):
    save(place / "in", "modern-1m")
    monkeypatch.setitem(sys.modules, package, None)
    refused(convert.main, f"--to={target}", "in", "out", capsys=capsys, told=[package, "gptlite[export]"])
    assert [path.name for path in place.iterdir()] == ["in"]


def test_an_interrupted_conversion_leaves_nothing(place, monkeypatch):
    save(place / "in", "modern-1m")
    monkeypatch.setattr(convert, "compare", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        convert.main(["--to=qwen3", "in", "out"])
    assert [path.name for path in place.iterdir()] == ["in"]


def test_help_explains_every_flag(capsys):
    code, out, _ = call(convert.main, "--help", capsys=capsys)
    assert code == 0
    assert "python -m scripts.convert" in out
    assert "IN OUT" in out
