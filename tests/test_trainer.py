"""Training with the Trainer: losses, accumulation, evaluation, resume, the best weights."""

import json
import math
import shutil
from concurrent.futures import Future

import pytest
import torch
from helpers import ARCHITECTURES, CUT, IDS, REPO, TEXT, commits, same_weights, tiny_model, train_tiny, trainer_for
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback

from modeling_gptlite.data.windows import EvaluationWindows
from modeling_gptlite.training import head
from modeling_gptlite.training.metrics import evaluate_loss


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "trainer"])
def test_the_loss_falls(optimizer, tmp_path):
    model = tiny_model("modern-1m")
    before = evaluate_loss(model, EvaluationWindows(IDS[CUT:], 32))
    trainer_for(model, tmp_path, steps=40, optimizer=optimizer, learning_rate=1e-2).train()
    assert evaluate_loss(model, EvaluationWindows(IDS[CUT:], 32)) < before - 1


def test_early_windows_are_cut_into_pieces(tmp_path, monkeypatch):
    seen, model = [], tiny_model("modern-1m")
    forward = model.forward

    def watched(input_ids, **kwargs):
        seen.append((tuple(input_ids.shape), tuple(kwargs["shift_labels"].shape), input_ids.flatten().tolist()))
        return forward(input_ids=input_ids, **kwargs)

    monkeypatch.setattr(model, "forward", watched)
    trainer = trainer_for(model, tmp_path, steps=5, short_context=8, short_context_fraction=0.6)
    trainer.train()
    assert [shapes for *shapes, _ in seen] == [[(32, 8), (32, 8)]] * 3 + [[(8, 32), (8, 32)]] * 2
    windows = trainer.train_dataset.__getitems__(list(range(8)))["input_ids"]
    assert seen[0][2] == windows.flatten().tolist()  # the same tokens


def test_every_piece_of_a_window_begins_as_the_windows_do(tmp_path, monkeypatch):
    seen, model = [], tiny_model("modern-1m")
    forward = model.forward
    monkeypatch.setattr(
        model, "forward", lambda input_ids, **kwargs: seen.append(input_ids) or forward(input_ids, **kwargs)
    )
    trainer = trainer_for(model, tmp_path, steps=1, short_context=8, short_context_fraction=1.0)
    trainer.train_dataset.begin = 7
    trainer.train()
    assert seen[0][:, 0].tolist() == [7] * 32


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"short_context": 5}, "must divide the windows' context of 32"),
        ({"short_context": 0}, "short_context must be at least 1, got 0"),
        ({"short_context_fraction": 1.5}, "short_context_fraction must be between 0 and 1, got 1.5"),
    ],
)
def test_impossible_pieces_are_refused(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        trainer_for(tiny_model("modern-1m"), tmp_path, **settings)


def test_the_momentum_of_muon_rises_and_stays(tmp_path):
    seen = []

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, optimizer=None, **kwargs):
            seen.append([group["momentum"] for group in optimizer.param_groups if "momentum" in group])

    trainer = trainer_for(tiny_model("modern-1m"), tmp_path, steps=6, optimizer="muon", muon_momentum_warmup=2 / 3)
    trainer.add_callback(Watch)
    trainer.train()
    assert seen == [[pytest.approx(momentum)] for momentum in (0.85, 0.875, 0.9, 0.925, 0.95, 0.95)]


@pytest.mark.parametrize(("precision", "used"), [("bf16", "short_windows"), ("fp32", "sdpa")])
def test_the_fastest_attention_is_used_in_training_only(precision, used, tmp_path, monkeypatch):
    step, seen = Trainer.training_step, set()

    def watched(self, *args, **kwargs):
        seen.add(self.model.config._attn_implementation)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", watched)
    model = tiny_model("modern-1m")
    trainer_for(model, tmp_path, steps=2, precision=precision).train()
    assert (seen, model.config._attn_implementation) == ({used}, "sdpa")


@pytest.mark.parametrize("preset", ARCHITECTURES)
def test_accumulation_equals_the_larger_batch(preset, tmp_path):
    weights = []
    for batch, accumulation in ((8, 1), (4, 2)):
        model = tiny_model(preset)
        settings = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
        trainer_for(model, tmp_path, **settings).train()
        weights.append(model.state_dict())
    torch.testing.assert_close(weights[0], weights[1], atol=2e-5, rtol=1e-4)


def test_the_trainers_evaluation_counts_every_target_once(tmp_path):
    model = tiny_model("modern-1m")
    trainer = trainer_for(model, tmp_path, per_device_eval_batch_size=7)
    expected = evaluate_loss(model, EvaluationWindows(IDS[CUT:], 32), batch_size=64)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_trainers_evaluation_holds_few_logits_in_its_own_precision(precision, dtype, tmp_path, monkeypatch):
    trainer = trainer_for(tiny_model("modern-1m"), tmp_path, precision=precision)
    expected, forward, seen = trainer.evaluate()["eval_loss"], trainer.model.lm_head.forward, []

    def watched(hidden_states):
        logits = forward(hidden_states)
        seen.append((logits.numel(), logits.dtype))
        return logits

    monkeypatch.setattr(trainer.model.lm_head, "forward", watched)
    monkeypatch.setattr(head, "LOGITS", 3000)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, abs=1e-5)
    assert max(seen)[0] <= 3000
    assert {kind for _, kind in seen} == {dtype}


def test_a_push_need_not_be_waited_for(hub, tmp_path):
    trainer = trainer_for(tiny_model("modern-1m"), tmp_path / "run", hub_model_id=REPO)
    push = trainer.push_to_hub("Without waiting", blocking=False)
    assert isinstance(push, Future)
    assert push.result().repo_url.repo_id == REPO
    assert commits(hub)[0].title == "Without waiting"


def test_other_causal_models_train_too(tmp_path):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=65, n_positions=32, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    trainer = trainer_for(GPT2LMHeadModel(config), tmp_path, steps=40, optimizer="muon", learning_rate=1e-2)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before - 1


def test_a_resumed_run_ends_with_the_weights_of_an_undisturbed_one(trained, text_file, tmp_path):
    shutil.copytree(trained / "checkpoint-10", tmp_path / "run" / "checkpoint-10")
    train_tiny(text_file, tmp_path / "run", "--resume_from_checkpoint=true")
    resumed, undisturbed = (load_file(folder / "model.safetensors") for folder in (tmp_path / "run", trained))
    assert resumed.keys() == undisturbed.keys()
    assert all(torch.equal(resumed[name], undisturbed[name]) for name in resumed)


def test_the_best_weights_are_kept_not_the_last(text_file, tmp_path):
    flags = [
        "--learning_rate=0.5",
        "--muon_learning_rate=2",
        "--warmup_steps=15",
        "--eval_steps=1",
        "--save_steps=1",
        "--max_steps=10",
    ]
    train_tiny(text_file, tmp_path / "wild", *flags)  # learns during warm-up, then is thrown off
    run = json.loads((tmp_path / "wild" / "run.json").read_text())
    losses = {row["step"]: row["eval_loss"] for row in run["log_history"] if "eval_loss" in row}
    assert run["results"]["best_step"] == min(losses, key=losses.get) < 10
    assert run["results"]["loss"] == pytest.approx(min(losses.values()), abs=0.02)


KINDS = {"char": [], "bpe": ["--tokenizer=bpe", "--vocab_size=300"], "word": ["--tokenizer=word", "--vocab_size=40"]}


@pytest.mark.parametrize(("kind", "flags"), KINDS.items(), ids=KINDS)
def test_bits_per_character_are_those_of_the_text_whatever_the_tokens(kind, flags, text_file, tmp_path, capsys):
    train_tiny(text_file, tmp_path / kind, *flags)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / kind)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / kind, trust_remote_code=False)
    text = TEXT[int(0.9 * len(TEXT)) :]
    ids, nats = tokenizer(text).input_ids, 0.0
    for start in range(0, len(ids) - 1, 32):
        window = torch.tensor([ids[start : start + 33]])
        with torch.no_grad():
            log_p = model(window[:, :-1]).logits.log_softmax(-1)
        nats -= log_p.gather(-1, window[:, 1:, None]).sum().item()
    results = json.loads((tmp_path / kind / "run.json").read_text())["results"]
    assert results["bits_per_character"] == pytest.approx(nats / math.log(2) / len(text), rel=1e-4)
    # Words that the small vocabulary lacks are named; the others are lossless.
    assert ("not in the vocabulary" in capsys.readouterr().out) == (kind == "word")
    assert (tokenizer.decode(ids) == text) == (kind != "word")


def test_a_saved_model_can_be_trained_on(trained, text_file, tmp_path):
    train_tiny(text_file, tmp_path / "more", f"--model_name_or_path={trained}", "--max_steps=40")
    first, more = (json.loads((f / "run.json").read_text())["results"]["loss"] for f in (trained, tmp_path / "more"))
    assert more < first


def test_a_data_set_of_rows_trains(tmp_path):
    rows = tmp_path / "rows"
    rows.mkdir()
    (rows / "train.jsonl").write_text("".join(json.dumps({"story": line}) + "\n" for line in TEXT.splitlines()))
    from scripts import train

    train.main(
        [
            f"--dataset={rows}",
            "--text_column=story",
            f"--output_dir={tmp_path / 'out'}",
            '--model_overrides={"hidden_size": 32, "num_hidden_layers": 1, "max_position_embeddings": 32}',
            "--num_train_epochs=1",
            "--per_device_train_batch_size=64",
            "--sample_length=0",
        ]
    )
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["results"]["steps"] == round(run["data"]["train_tokens"] / (64 * 32))


def test_tensorboard_gets_the_losses(text_file, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train_tiny(text_file, tmp_path / "run", "--report_to=tensorboard")
    (folder,) = (tmp_path / "run" / "runs").iterdir()
    events = EventAccumulator(str(folder)).Reload()
    logged = [(event.step, event.value) for event in events.Scalars("eval/loss")]
    rows = json.loads((tmp_path / "run" / "run.json").read_text())["log_history"]
    expected = [(row["step"], row["eval_loss"]) for row in rows if "eval_loss" in row]
    assert logged == [(step, pytest.approx(loss)) for step, loss in expected]
    assert {"train/loss", "train/grad_norm", "train/learning_rate"} <= set(events.Tags()["scalars"])


def test_a_setting_that_is_an_object_is_recorded(trained, text_file, tmp_path):
    train_tiny(text_file, tmp_path, '--accelerator_config={"split_batches": true}')
    arguments = json.loads((tmp_path / "run.json").read_text())["arguments"]
    assert arguments["accelerator_config"]["split_batches"] is True
    assert same_weights(tmp_path, trained)
