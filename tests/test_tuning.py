"""How the fine-tuning of a pretrained model is chosen, and what comes of it with models of four classes."""

import json
import re

import pytest
import torch
from helpers import call, interrupted, run_python, same_weights, save_base, write_rows
from safetensors.torch import load_file

from modeling_gptlite.runs import auto, tuning
from modeling_gptlite.runs.advice import suggest_base
from modeling_gptlite.runs.auto import Facts, resolve
from modeling_gptlite.runs.train import Measure, start_from
from modeling_gptlite.runs.tuning import (
    LORA_RANK,
    LORA_RATE,
    RATE,
    Base,
    choose_base,
    describe,
    intervals,
    spread,
    tune,
)
from modeling_gptlite.training.arguments import ArgumentError
from modeling_gptlite.training.timing import Costs
from modeling_gptlite.training.trainer import CausalLMTrainer
from scripts import train


BASE, TOKENS = Base(longest=8192), 300_000
MODEL = {"model_name_or_path": "base"}
COSTS = Costs(start=5.0, step=3.0, short_step=3.0, evaluation=10.0, checkpoint=2.0, finish=8.0, tokens_per_step=768)


def enough(settings):
    return 1, 2


def memory_of(free, full=4.0):
    """Needs `full` GB to train all weights in windows of 768 tokens, a half for LoRA, a half again for activations."""

    def memory(settings):
        needed = full * (0.5 if settings.get("lora_r") else 1.0) * settings["context_length"] / 768
        return int(9e8 * needed * (0.5 if settings.get(tuning.CHECKPOINTING) else 1.0)), int(1e9 * free)

    return memory


# ---- What is chosen ------------------------------------------------------------------------------------------------


def test_all_weights_but_the_embeddings_are_trained_in_long_windows():
    chosen = tune(MODEL, BASE, TOKENS, enough)
    assert (chosen["context_length"], chosen["per_device_train_batch_size"]) == (768, 1)
    assert chosen["learning_rate"] == RATE
    assert chosen["freeze_embeddings"]
    assert chosen["eval_on_start"]
    assert "lora_r" not in chosen


@pytest.mark.parametrize(
    ("free", "expected"),
    [
        (4.0, {}),
        (2.0, {tuning.CHECKPOINTING: True}),
        (1.99, {"context_length": 384, tuning.CHECKPOINTING: True}),
        (0.99, {"context_length": 192, tuning.CHECKPOINTING: True}),
        (0.49, {"context_length": 192, tuning.CHECKPOINTING: True, "lora_r": LORA_RANK, "learning_rate": LORA_RATE}),
    ],
)
def test_less_memory_means_more_computation_then_shorter_windows_then_lora(free, expected):
    chosen = tune(MODEL, BASE, TOKENS, memory_of(free))
    whole = {"context_length": 768, tuning.CHECKPOINTING: False, "learning_rate": RATE, **expected}
    assert {name: chosen[name] for name in whole} == whole
    assert ("lora_r" in chosen) is ("lora_r" in expected)


def test_a_model_that_does_not_fit_in_any_way_is_refused_with_what_is_missing():
    with pytest.raises(ArgumentError, match=r"needs at least 0\.2 GB of memory, and 0\.1 GB are free"):
        tune(MODEL, BASE, TOKENS, memory_of(0.1))


@pytest.mark.parametrize(
    ("base", "tokens", "context"),
    [(Base(512), TOKENS, 512), (Base(None), TOKENS, 768), (BASE, 4000, 384), (BASE, 100, 24)],
    ids=["a short model", "no limit", "a short text", "a very short text"],
)
def test_the_context_suits_the_model_and_the_text(base, tokens, context):
    chosen = tune(MODEL, base, tokens, enough)
    assert chosen["context_length"] == context
    assert chosen["per_device_train_batch_size"] == max(1, 1024 // context)


def test_embeddings_of_new_characters_are_trained():
    assert not tune(MODEL, Base(8192, new_tokens=1), TOKENS, enough)["freeze_embeddings"]


def test_what_is_given_is_not_chosen():
    given = {"context_length": 128, "learning_rate": 5e-5, "lora_r": 4, "eval_on_start": False}
    chosen = tune({**MODEL, **given}, BASE, TOKENS, enough)
    assert not given.keys() & chosen.keys()
    assert chosen["per_device_train_batch_size"] == 8
    assert "freeze_embeddings" not in chosen


@pytest.mark.parametrize("given", [{"min_learning_rate_ratio": 0.05}, {"lr_scheduler_kwargs": {"min_lr_rate": 0.05}}])
def test_a_floor_of_the_rate_keeps_the_default_schedule(given):
    assert "lr_scheduler_type" not in tune({**MODEL, **given}, BASE, TOKENS, enough)


def test_steps_grow_where_there_is_time_for_many():
    chosen = tune(MODEL, BASE, TOKENS, enough)
    assert [spread(chosen, steps) for steps in (10, 399, 400, 1000, 10**6)] == [1, 1, 2, 5, 10]


@pytest.mark.parametrize(("steps", "evaluations"), [(1, 4), (3, 4), (4, 4), (7, 4), (15, 4), (103, 4), (90, 1)])
def test_the_last_step_is_evaluated_and_saved(steps, evaluations):
    fitted = intervals(steps, evaluations)
    assert 0 < fitted["max_steps"] <= steps
    assert fitted["max_steps"] % fitted["eval_steps"] == 0
    assert fitted["max_steps"] > steps - max(evaluations, 1)
    assert fitted["max_steps"] // fitted["eval_steps"] <= evaluations
    assert fitted["eval_steps"] == fitted["save_steps"]


def test_the_minutes_hold_evaluations_before_during_and_after_training():
    resolved = resolve({**MODEL, "minutes": 10.0}, Facts(10**7, base=BASE), lambda _: COSTS, memory=enough)
    settings = resolved.settings
    evaluations = settings["max_steps"] // settings["eval_steps"]
    assert evaluations == 4
    seconds = COSTS.start + settings["max_steps"] * 3 + 5 * 10 + 4 * 2 + COSTS.finish
    assert 0.95 * 600 < seconds <= 600
    assert resolved.lines[0].startswith("fine-tuning all weights but the embeddings: 1 x 768 tokens per step")
    assert not resolved.recorded["limited_by_text"]


def test_a_short_text_is_read_twice():
    resolved = resolve({**MODEL, "minutes": 60.0}, Facts(76_800, base=BASE), lambda _: COSTS, memory=enough)
    assert resolved.settings["max_steps"] * resolved.settings["gradient_accumulation_steps"] == 200
    assert resolved.recorded["limited_by_text"]
    assert "so little text" in resolved.lines[1]
    without = resolve(MODEL, Facts(76_800, base=BASE), lambda _: pytest.fail("measured"), memory=enough)
    assert without.settings["max_steps"] == resolved.settings["max_steps"]


@pytest.mark.parametrize(
    ("given", "steps"),
    [
        ({"gradient_accumulation_steps": 4}, {"max_steps": 48, "gradient_accumulation_steps": 4, "eval_steps": 12}),
        ({"num_train_epochs": 1.0}, {"max_steps": 100, "gradient_accumulation_steps": 1, "eval_steps": 25}),
        ({"max_steps": 30}, {"max_steps": 30, "gradient_accumulation_steps": 1, "eval_steps": 7}),
        ({"max_steps": 30, "eval_steps": 10}, {"max_steps": 30, "eval_steps": 10, "save_steps": 10}),
        ({"max_steps": 30, "save_steps": 5}, {"max_steps": 30, "eval_steps": 5, "save_steps": 5}),
    ],
)
def test_steps_that_are_given_are_taken(given, steps):
    resolved = resolve({**MODEL, **given}, Facts(76_800, base=BASE), lambda _: pytest.fail("measured"), memory=enough)
    assert {name: resolved.settings[name] for name in steps} == steps


@pytest.mark.parametrize(
    ("examples", "longest", "context", "windows"),
    [((2000, 60), 8192, 60, 17), ((300, 3000), 8192, 768, 1), ((50, 40), 32, 32, 32)],
)
def test_examples_are_counted_and_not_their_tokens(examples, longest, context, windows):
    facts = Facts(120_000, divides=False, examples=examples, base=Base(longest))
    resolved = resolve(MODEL, facts, lambda _: pytest.fail("measured"), memory=enough)
    chosen = resolved.settings
    assert (chosen["context_length"], chosen["per_device_train_batch_size"]) == (context, windows)
    seen = chosen["max_steps"] * chosen["gradient_accumulation_steps"] * windows
    assert seen == pytest.approx(2 * examples[0], rel=0.25)


@pytest.mark.parametrize(("minutes", "is_compiled"), [({}, True), ({"minutes": 3.0}, False), ({"minutes": 5.0}, True)])
def test_compilation_is_decided_for_the_batch_that_was_chosen(minutes, is_compiled, monkeypatch):
    monkeypatch.setattr(auto, "compiling_pays", lambda seconds: seconds > 200)
    measured = []
    facts = Facts(76_800, steps=None, base=BASE)
    settings = {**MODEL, **minutes, "torch_compile": "auto"}
    resolved = resolve(settings, facts, lambda each: measured.append(each) or COSTS, memory=enough)
    assert resolved.settings["torch_compile"] is is_compiled  # 200 steps of 3 seconds
    assert [each["context_length"] for each in measured] == [768]
    assert [each["torch_compile"] for each in measured] == [is_compiled if minutes else False]


def test_evaluations_at_given_intervals_are_part_of_the_minutes():
    given = {**MODEL, "minutes": 10.0, "eval_steps": 10, "gradient_accumulation_steps": 1}
    settings = resolve(given, Facts(10**7, base=BASE), lambda _: COSTS, memory=enough).settings
    steps = settings["max_steps"]
    seconds = COSTS.start + steps * 3 + 10 + steps // 10 * (10 + 2) + COSTS.finish
    assert 0.9 * 600 < seconds <= 600


def test_without_peft_there_is_no_lora(monkeypatch):
    monkeypatch.setattr(tuning, "is_peft_available", lambda: False)
    with pytest.raises(ArgumentError, match=r'pip install "gptlite\[finetune\]" for LoRA'):
        tune(MODEL, BASE, TOKENS, memory_of(0.1))


def test_the_line_names_what_is_trained():
    lora = {"lora_r": 8, "freeze_embeddings": True, "per_device_train_batch_size": 1, "context_length": 64}
    assert describe({**lora, "learning_rate": 1e-3}, {}).startswith("fine-tuning LoRA of rank 8: 1 x 64 tokens")


def test_processes_share_the_passes():
    alone, both = (
        resolve(MODEL, Facts(76_800, processes=count, base=BASE), lambda _: COSTS, memory=enough).settings
        for count in (1, 2)
    )
    assert alone["max_steps"] == 2 * both["max_steps"]


def test_the_evaluation_before_training_is_left_out_where_it_would_take_too_long():
    resolved = resolve({**MODEL, "minutes": 1.0}, Facts(10**7, base=BASE), lambda _: COSTS, memory=enough)
    assert not resolved.settings["eval_on_start"]
    assert resolved.settings["eval_steps"] == resolved.settings["max_steps"]


def test_too_few_minutes_are_refused_with_how_many_it_takes():
    with pytest.raises(ArgumentError, match=r"--minutes 0\.3 is too short: .* take 0\.5 minutes"):
        resolve({**MODEL, "minutes": 0.3}, Facts(10**7, base=BASE), lambda _: COSTS, memory=enough)


def test_a_resumed_run_takes_what_was_recorded():
    resolved = resolve({**MODEL, "minutes": 10.0}, Facts(10**7, base=BASE), lambda _: COSTS, memory=enough)
    again = auto.resume({**MODEL, "minutes": 10.0}, {**resolved.recorded, "max_steps": resolved.settings["max_steps"]})
    assert again.settings == resolved.settings


# ---- Which base ----------------------------------------------------------------------------------------------------

ENGLISH = "It was the best of times, it was the worst of times, and he was not at home in the age of wisdom."
GERMAN = "Es war die beste aller Zeiten, es war die schlechteste aller Zeiten, und niemand war mehr zu Hause."


@pytest.mark.parametrize(
    ("language", "beginning", "gigabytes", "expected"),
    [
        (None, ENGLISH, 16, "HuggingFaceTB/SmolLM2-135M"),
        (None, ENGLISH, 1.5, "EleutherAI/pythia-70m"),
        (None, GERMAN, 16, "Qwen/Qwen3-0.6B-Base"),
        ("en", GERMAN, 16, "HuggingFaceTB/SmolLM2-135M"),
        ("de", ENGLISH, 16, "Qwen/Qwen3-0.6B-Base"),
    ],
)
def test_the_base_suits_the_language_and_the_memory(language, beginning, gigabytes, expected):
    assert choose_base(language, beginning, int(gigabytes * 1e9)).name == expected


@pytest.mark.parametrize(("beginning", "told"), [(ENGLISH, "a text in English"), (GERMAN, "another language")])
def test_a_text_without_a_base_is_refused(beginning, told):
    with pytest.raises(ArgumentError, match=told):
        choose_base(None, beginning, 10**8)


def test_a_base_that_is_not_there_is_one_line_after_its_size_and_license(text, tmp_path, capsys):
    flags = ["--model_name_or_path=auto", f"--train_file={text}", "--language=en"]
    code, out, err = call(train.main, *flags, f"--output_dir={tmp_path / 'out'}", capsys=capsys)
    assert code == 2
    assert "auto: HuggingFaceTB/SmolLM2-135M, 269 MB to download once, license apache-2.0" in out
    assert "HuggingFaceTB/SmolLM2-135M" in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_short_text_from_scratch_ends_with_the_command_that_would_help(text):
    advice = suggest_base([str(text)], 75_000, 10, is_pretrained=False)
    assert advice is not None
    assert f"gptlite train --model_name_or_path auto --train_file {text} --minutes 10" in advice
    assert suggest_base([str(text)], 75_000, 10, is_pretrained=True) is None
    assert suggest_base([str(text)], 10**6, 10, is_pretrained=False) is None


# ---- What comes of it ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "book.txt"
    path.write_text("".join(f"{number} green bottles, standing on the wall.\n" for number in range(120)))
    return path


@pytest.fixture(scope="module")
def bases(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("bases")
    for kind in ("llama", "gpt2", "qwen3", "gpt_neox"):
        save_base(folder / kind, kind, text.read_text())
    return folder


def given(bases, text, folder, kind="llama", **settings):
    defaults = {"sample_length": 5, "eval_sample_length": 0, "learning_rate": 1e-2}
    return {
        "model_name_or_path": str(bases / kind),
        "train_file": str(text),
        "output_dir": str(folder),
        **defaults,
        **settings,
    }


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3", "gpt_neox"])
def test_the_bare_command_fine_tunes_every_class(kind, bases, text, tmp_path):
    lines = []
    run = start_from(**given(bases, text, tmp_path / "out", kind))
    run.log = lines.append
    record = run.train()
    results = record["results"]
    assert results["loss"] < results["loss_before"]
    assert results["bits_per_character"] < results["bits_per_character_before"]
    before, after = (results[f"bits_per_character{when}"] for when in ("_before", ""))
    assert any(f"bits per character {before:.3f} before, {after:.3f} after" in line for line in lines)
    assert record["arguments"]["context_length"] == 64
    base, tuned = (load_file(folder / "model.safetensors") for folder in (bases / kind, tmp_path / "out"))
    assert base.keys() == tuned.keys()
    changed = [name for name in tuned if not torch.equal(base[name], tuned[name])]
    assert changed
    assert not any("embed_tokens" in name or "wte" in name or "embed_in" in name for name in changed)


def test_rows_are_fine_tuned_with_nothing_else_given(bases, tmp_path):
    rows = [{"prompt": f"{number} and one? ", "completion": str(number + 1)} for number in range(200)]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    record = start_from(**given(bases, file, tmp_path / "run")).train()
    arguments, steps = record["arguments"], record["results"]["steps"]
    seen = steps * arguments["per_device_train_batch_size"] * arguments["gradient_accumulation_steps"]
    assert seen == pytest.approx(2 * record["data"]["train_examples"], rel=0.25)


def test_the_evaluation_before_training_is_not_a_step(bases, text, tmp_path, capsys):
    start_from(**given(bases, text, tmp_path / "run", max_steps=2, eval_steps=1)).train()
    first, *later = (line for line in capsys.readouterr().out.splitlines() if line.startswith("step "))
    assert re.fullmatch(r"step 0/2 \| val \d+\.\d+", first)
    assert all("tokens/s" in line for line in later)


def test_the_loss_is_that_of_training_also_without_an_evaluation_before_it(bases, text, tmp_path, monkeypatch):
    monkeypatch.setattr("modeling_gptlite.runs.run.evaluate_loss", lambda *_: pytest.fail("evaluated again"))
    record = start_from(**given(bases, text, tmp_path / "run", max_steps=2, eval_on_start=False)).train()
    measured = [row["eval_loss"] for row in record["log_history"] if "eval_loss" in row]
    assert record["results"]["loss"] == min(measured)


def test_the_memory_of_a_machine_is_shared_by_its_processes(bases, text, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(tuning, "FREE_SHARE", 1e-9)
    measured = Measure.memory
    monkeypatch.setattr(Measure, "memory", lambda self, settings: asked.append(measured(self, settings)) or asked[-1])
    for processes in ("1", "2"):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        with pytest.raises(ArgumentError, match="training needs at least"):
            start_from(**given(bases, text, tmp_path / "run"))
    half = len(asked) // 2
    assert [need for need, _ in asked[half:]] == [2 * need for need, _ in asked[:half]]


def test_lora_that_was_chosen_is_merged_and_lora_that_was_given_is_kept(bases, text, tmp_path, monkeypatch):
    pytest.importorskip("peft")
    lora_only = lambda self, settings: (int("lora_r" not in settings), 0)  # noqa: E731
    monkeypatch.setattr("modeling_gptlite.runs.train.Measure.memory", lora_only)
    monkeypatch.setattr(CausalLMTrainer, "init_hf_repo", lambda self: None)
    monkeypatch.setattr(CausalLMTrainer, "push_saved", lambda self, *_: pushed.append(self.state.global_step))
    pushed: list[int] = []
    record = start_from(**given(bases, text, tmp_path / "chosen"), push_to_hub=True).train()
    assert record["lora_merged"]
    merged = load_file(tmp_path / "chosen" / "model.safetensors").values()
    assert record["parameters"] == sum(weight.numel() for weight in merged)  # and not those of the adapter
    assert pushed == [record["results"]["steps"]]  # no checkpoint, which is an adapter of a local folder
    assert record["results"]["loss"] < record["results"]["loss_before"]
    assert not (tmp_path / "chosen" / "adapter_config.json").exists()
    assert "Llama" in run_python(
        f"""
from transformers import pipeline
generate = pipeline("text-generation", model={str(tmp_path / "chosen")!r})
generate("12 green", max_new_tokens=5)
print(type(generate.model).__name__)
""",
        tmp_path,
    )
    start_from(**given(bases, text, tmp_path / "given", lora_r=2, max_steps=2)).train()
    assert (tmp_path / "given" / "adapter_config.json").exists()


def test_a_run_that_was_stopped_ends_with_the_same_bits(bases, text, tmp_path, monkeypatch):
    settings = {"max_steps": 8, "eval_steps": 2, "save_steps": 2}
    whole = start_from(**given(bases, text, tmp_path / "whole", **settings)).train()
    interrupted(start_from(**given(bases, text, tmp_path / "parts", **settings)), 4)
    monkeypatch.setattr(auto, "resolve", lambda *_: pytest.fail("decided again"))
    parts = start_from(**given(bases, text, tmp_path / "parts", **settings)).train()
    assert same_weights(tmp_path / "whole", tmp_path / "parts")
    assert parts["results"]["loss_before"] == whole["results"]["loss_before"]
    assert [row["step"] for row in parts["log_history"] if "eval_loss" in row] == [0, 2, 4, 6, 8]
    assert json.loads((tmp_path / "parts" / "run.json").read_text())["results"]["loss"] == whole["results"]["loss"]
