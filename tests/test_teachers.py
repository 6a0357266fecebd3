"""Teachers: models that a run trains first and learns from, and how it goes on after an interruption."""

import dataclasses
import json
import math
import shutil
import signal
from pathlib import Path

import pytest
import torch
from helpers import interrupted, refused, same_weights, tiny_model, toy_run

from modeling_gptlite.errors import UserError
from modeling_gptlite.runs import auto, sizes, train
from modeling_gptlite.runs.auto import Facts, resolve
from modeling_gptlite.runs.resume import ResumeError
from modeling_gptlite.runs.run import Interrupted
from modeling_gptlite.runs.sizes import SIZES, choose
from modeling_gptlite.runs.teachers import FOLDER, around_steps, teacher_settings
from modeling_gptlite.runs.train import start_from
from modeling_gptlite.training.arguments import ArgumentError, CausalLMTrainingArguments
from modeling_gptlite.training.distillation import TEACHERS_SHARE, DistillationLoss
from modeling_gptlite.training.timing import Costs
from modeling_gptlite.training.trainer import CausalLMTrainer
from scripts import train as command


# ---- The loss ------------------------------------------------------------------------------------------------------


@pytest.fixture
def models():
    torch.manual_seed(0)
    return [tiny_model("modern-1m", initializer_range=0.5) for _ in range(3)]


def test_the_loss_is_that_of_the_text_and_of_the_mean_of_the_teachers(models, tmp_path):
    model, *teachers = models
    ids = torch.randint(model.config.vocab_size, (2, 9), generator=torch.Generator().manual_seed(0))
    inputs, labels = ids[:, :-1], ids[:, 1:].clone()
    labels[0, :3] = -100
    loss = DistillationLoss(teachers, CausalLMTrainingArguments(tmp_path, use_cpu=True, precision="fp32"))
    loss.ask(inputs)
    logits = model(input_ids=inputs).logits
    logits.retain_grad()
    found = loss(type("Output", (), {"logits": logits}), labels)
    found.backward()
    assert loss.expected.shape == logits.shape

    counted = labels >= 0
    expected = sum(teacher(input_ids=inputs).logits.softmax(-1) for teacher in teachers) / 2
    of_text = torch.nn.functional.cross_entropy(logits[counted], labels[counted])
    of_teachers = torch.nn.functional.cross_entropy(logits[counted], expected[counted].detach())
    torch.testing.assert_close(found, (1 - TEACHERS_SHARE) * of_text + TEACHERS_SHARE * of_teachers)
    targets = torch.nn.functional.one_hot(labels.clamp(min=0), logits.shape[-1])
    wanted = (1 - TEACHERS_SHARE) * targets + TEACHERS_SHARE * expected
    gradient = (logits.softmax(-1) - wanted) * counted[..., None] / counted.sum()
    torch.testing.assert_close(logits.grad, gradient, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(loss(type("Output", (), {"logits": logits}), labels, 26), found * counted.sum() / 26)


def test_teachers_are_asked_without_dropout_and_do_not_learn(models, tmp_path):
    teacher = tiny_model("modern-1m", hidden_dropout=0.5).train()
    loss = DistillationLoss([teacher], CausalLMTrainingArguments(tmp_path, use_cpu=True, precision="fp32"))
    ids = torch.arange(8)[None]
    loss.ask(ids)
    first = loss.expected
    loss.ask(ids)
    assert torch.equal(loss.expected, first)
    assert not first.requires_grad


def test_smoothing_beside_teachers_is_refused(models, tmp_path):
    args = CausalLMTrainingArguments(tmp_path, use_cpu=True, max_steps=1, label_smoothing_factor=0.1)
    with pytest.raises(ArgumentError, match="label_smoothing_factor would have no effect"):
        CausalLMTrainer(models[0], args, teachers=models[1:])


# ---- Their settings ------------------------------------------------------------------------------------------------


def test_a_teacher_is_the_same_run_with_another_seed_and_what_is_overridden():
    settings = {
        "preset": "modern-1m",
        "model_overrides": '{"hidden_size": 32, "hidden_dropout": 0.0}',
        "max_steps": 900,
        "minutes": 5.0,
        "weight_decay": 0.5,
        "output_dir": "here",
        "push_to_hub": True,
        "teachers": 2,
        "teacher_overrides": '{"max_steps": 90, "weight_decay": 2.0, "model_overrides": {"hidden_dropout": 0.2}}',
    }
    one, other = teacher_settings(settings)
    assert json.loads(one["model_overrides"]) == {"hidden_size": 32, "hidden_dropout": 0.2}
    assert one.items() >= {"preset": "modern-1m", "max_steps": 90, "weight_decay": 2.0, "push_to_hub": False}.items()
    assert (one["eval_steps"], one["save_steps"], one["warmup_steps"]) == (45, 45, 5)
    assert one.keys().isdisjoint({"minutes", "teachers", "teacher_overrides"})
    assert [Path(each["output_dir"]) for each in (one, other)] == [Path("here/teachers/1"), Path("here/teachers/2")]
    assert (one["seed"], other["seed"]) == (43, 44)
    (alike, _) = teacher_settings({**settings, "teacher_overrides": "{}", "warmup_steps": 0.1})
    assert (alike["max_steps"], alike["warmup_steps"]) == (900, 0.1)
    given = '{"max_steps": "90", "warmup_steps": 30, "model_overrides": "{\\"hidden_dropout\\": 0.2}"}'
    (teacher, _) = teacher_settings({**settings, "teacher_overrides": given})
    assert (teacher["max_steps"], teacher["warmup_steps"]) == (90, 30)
    (teacher, _) = teacher_settings({**settings, "output_dir": "~/x", "teacher_overrides": '{"preset": "modern-10m"}'})
    assert Path(teacher["output_dir"]) == Path.home() / "x" / "teachers" / "1"
    assert (teacher["preset"], teacher["model_overrides"]) == ("modern-10m", "{}")  # the run's suit its own preset
    (teacher, _) = teacher_settings({**settings, "teacher_overrides": '{"model_overrides": {"hidden_dropout": 0.2}}'})
    assert json.loads(teacher["model_overrides"])["hidden_dropout"] == 0.2
    assert teacher_settings({**settings, "teachers": 0}) == []


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--teachers=-1"], "teachers must be 0 (none) or more"),
        (["--teachers=1", "--model_name_or_path=out/x"], "--teachers are for a new model"),
        (["--teachers=1", "--label_smoothing_factor=0.1"], "--label_smoothing_factor would have no effect"),
        (["--teachers=1", "--teacher_overrides=[1]"], "--teacher_overrides must be a JSON object of settings"),
        (["--teachers=1", "--teacher_overrides={"], "--teacher_overrides must be a JSON object of settings"),
        (["--teachers=1", '--teacher_overrides={"max_step": 3}'], "unknown setting 'max_step'"),
        (["--teachers=1", '--teacher_overrides={"weight_decay": -3}'], "weight_decay"),
        (["--teachers=1", '--teacher_overrides={"max_steps": "many"}'], "max_steps"),
        (["--teachers=1", '--teacher_overrides={"model_overrides": [1]}'], "must be a JSON object of settings"),
        (["--teachers=1", '--teacher_overrides={"teachers": 2}'], "--teacher_overrides cannot set teachers"),
        (["--teachers=1", '--teacher_overrides={"train_file": "x"}'], "--teacher_overrides cannot set train_file"),
        (["--teachers=1", '--teacher_overrides={"num_train_epochs": 3}'], "cannot set num_train_epochs"),
        (["--max_steps=5", "--teacher_overrides={}"], "--teacher_overrides needs --teachers"),
    ],
)
def test_teachers_that_cannot_be_trained_are_refused(flags, told, text_file, tmp_path, capsys):
    output = tmp_path / "run"
    refused(command.main, f"--train_file={text_file}", f"--output_dir={output}", *flags, capsys=capsys, told=[told])
    assert not output.exists()


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"hidden_sze": 64}, "hidden_sze"),
        ({"vocab_size": 99}, "a teacher needs the vocabulary of the run"),
        ({"max_position_embeddings": 16}, "at least its context of 32"),
    ],
)
def test_a_teacher_that_cannot_teach_is_refused_before_anything_is_written(fields, told, settings, tmp_path):
    with pytest.raises(UserError, match=told):
        start_from(**{**settings, "teacher_overrides": {"model_overrides": fields}})
    assert not list((tmp_path / "run").glob("*"))


# ---- Runs ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def settings(text_file, tmp_path):
    """A toy run, with dropout, that learns from two teachers."""
    overrides = {"max_steps": 12, "weight_decay": 0.3}
    lengths = {"max_steps": 20, "save_steps": 10, "eval_steps": 10, "eval_sample_length": 0}
    return toy_run(text_file, tmp_path / "run", **lengths, teachers=2, teacher_overrides=overrides)


@pytest.fixture
def whole(settings, tmp_path):
    """The folder of the run, if it is not interrupted."""
    start_from(**{**settings, "output_dir": str(tmp_path / "whole")}).train()
    return tmp_path / "whole"


def test_a_run_trains_its_teachers_first_and_keeps_what_they_know_only(settings, tmp_path, capsys):
    run = start_from(**settings)
    remove, taken = run.teachers.remove, []
    run.teachers.remove = lambda: (taken.append(run.teachers.seconds()), remove())
    record = run.train()
    out = capsys.readouterr().out
    assert out.index("teacher 1 of 2") < out.index("teacher 2 of 2") < out.index("from the text and its teachers")
    assert len(run.trainer.teachers) == 2
    assert not same_state(*run.trainer.teachers)
    assert not (tmp_path / "run" / FOLDER).exists()
    assert record["arguments"]["teachers"] == 2
    assert json.loads(record["arguments"]["teacher_overrides"]) == {"max_steps": 12, "weight_decay": 0.3}
    start_from(**{**settings, "teachers": 0, "output_dir": str(tmp_path / "alone")}).train()
    assert record["log_history"][0]["seconds"] > taken[0] > 0
    assert not same_weights(tmp_path / "run", tmp_path / "alone")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        path.name for path in (tmp_path / "alone").iterdir()
    }
    assert "2 teachers" in (tmp_path / "run" / "README.md").read_text(encoding="utf-8")


def same_state(one, other) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_its_record_repeats_it(settings, whole, tmp_path):
    arguments = json.loads((whole / "run.json").read_text(encoding="utf-8"))["arguments"]
    start_from(**{**arguments, "train_file": settings["train_file"], "output_dir": str(tmp_path / "again")}).train()
    assert same_weights(tmp_path / "again", whole)


class Interrupting:
    """A run that is interrupted at a step."""

    def __init__(self, run, step):
        self.run, self.step = run, step

    def train(self):
        interrupted(self.run, self.step)
        raise KeyboardInterrupt


def interrupt_teacher(settings, number, step, monkeypatch):
    """Train until a step of the teacher of this number."""
    prepare = train.prepare_teacher

    def interrupting(inputs, each):
        run = prepare(inputs, each)
        return Interrupting(run, step) if each["output_dir"].endswith(str(number)) else run

    with monkeypatch.context() as patch:
        patch.setattr(train, "prepare_teacher", interrupting)
        with pytest.raises(KeyboardInterrupt):
            start_from(**settings).train()


def test_a_signal_between_two_teachers_ends_the_run(settings, tmp_path):
    run = start_from(**settings)
    prepare = run.teachers.prepare

    class Signalled:
        def __init__(self, settings):
            self.run = prepare(settings)

        def train(self):
            self.run.train()
            run.stop.received = signal.SIGTERM

    run.teachers.prepare = Signalled
    with pytest.raises(Interrupted, match="stopped before the next model"):
        run.train()
    assert [path.name for path in (tmp_path / "run" / FOLDER).iterdir() if path.is_dir()] == ["1"]


@pytest.mark.parametrize("number", [1, 2])
def test_a_run_interrupted_in_a_teacher_resumes_bit_for_bit(number, settings, whole, tmp_path, monkeypatch, capsys):
    interrupt_teacher(settings, number, 6, monkeypatch)
    assert not list((tmp_path / "run").glob("checkpoint-*"))
    assert (tmp_path / "run" / FOLDER / str(number) / "checkpoint-6").is_dir()
    first = tmp_path / "run" / FOLDER / "1" / "model.safetensors"
    before = first.stat().st_mtime_ns if number == 2 else None
    with pytest.raises(ResumeError, match=r"max_steps was 20 and is now 30"):
        start_from(**{**settings, "max_steps": 30})
    with pytest.raises(ResumeError, match="holds an unfinished run"):
        start_from(**settings, resume_from_checkpoint="false")
    capsys.readouterr()
    run = start_from(**settings, resume_from_checkpoint="true")
    assert "resuming from teachers" in capsys.readouterr().out
    remove, prepare, kept, began = run.teachers.remove, run.teachers.prepare, [], []
    run.teachers.remove = lambda: (kept.append(first.stat().st_mtime_ns), remove())
    run.teachers.prepare = lambda each: began.append(prepare(each)) or began[-1]
    run.train()
    assert number == 1 or kept == [before]  # the first is not trained again
    assert [each.checkpoint and each.checkpoint.name for each in began] == ["checkpoint-6", None][: 3 - number]
    assert same_weights(tmp_path / "run", whole)


def test_a_run_interrupted_between_its_teachers_and_its_own_model_ends_with_the_same_weights(settings, whole, tmp_path):
    run = start_from(**settings)

    def interrupt(**_):
        raise KeyboardInterrupt

    run.trainer.train = interrupt
    with pytest.raises(KeyboardInterrupt):
        run.train()
    start_from(**settings).train()
    assert same_weights(tmp_path / "run", whole)


def test_a_run_interrupted_after_its_teachers_resumes_bit_for_bit(settings, whole, tmp_path):
    interrupted(start_from(**settings), 12)
    assert (tmp_path / "run" / FOLDER / "2" / "run.json").is_file()
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    start_from(**settings).train()
    assert same_weights(tmp_path / "run", whole)
    # Without the teachers' folder they are trained again, to the same weights.
    shutil.rmtree(tmp_path / "copy" / FOLDER)
    start_from(**{**settings, "output_dir": str(tmp_path / "copy")}).train()
    assert same_weights(tmp_path / "copy", whole)


# ---- What minutes choose -------------------------------------------------------------------------------------------


def costs(step: float, **parts) -> Costs:
    return Costs(0.0, step, step, **{"evaluation": 1.0, "checkpoint": 0.0, "tokens_per_step": 1536, **parts})


def chosen_for(passes: float, tokens: int = 67_900, **settings) -> dict:
    """What is chosen if there is time for this many passes of the smallest size."""
    steps = passes * tokens / 1536
    found = costs(60 / steps, evaluation=0.0, forward=15 / steps)
    return choose({"minutes": 1, **settings}, tokens, lambda _: found)[1]


@pytest.mark.parametrize(
    ("passes", "teachers", "each"),
    [(5.9, 0, 0), (9, 1, 2.6), (17.5, 1, 5), (34, 1, 9.7), (51, 2, 10), (66, 3, 10), (999, 8, 10)],
)
def test_teachers_are_as_many_as_there_is_time_for(passes, teachers, each):
    chosen = chosen_for(passes)
    assert chosen.get("teachers", 0) == teachers
    if teachers:
        assert chosen["teacher_overrides"]["max_steps"] == pytest.approx(each * 67_900 / 1536, abs=2)
        assert (chosen["model_overrides"]["hidden_dropout"], chosen["weight_decay"]) == (0.0, 0.5 if each >= 5 else 0.0)
        dropout, decay = SIZES[0].regularize(each)
        overrides = chosen["teacher_overrides"]
        assert (overrides["model_overrides"], overrides["weight_decay"]) == ({"hidden_dropout": dropout}, decay)


def test_teachers_are_for_a_text_that_is_short_for_the_time_and_not_too_short():
    assert "teachers" not in chosen_for(5.9, tokens=500_000)
    assert chosen_for(6.1, tokens=500_000)["teachers"] == 1
    assert "teachers" not in chosen_for(999, tokens=15_000)  # ten passes are less than a hundred steps


def test_a_larger_model_has_fewer_passes_with_its_teachers():
    def measure(settings):
        steps = 13_000 if json.loads(settings["model_overrides"])["hidden_size"] == 128 else 5_200
        return costs(60 / steps, evaluation=0.0, forward=15 / steps)

    size, chosen = choose({"minutes": 1}, 1_003_854, measure)
    assert (size, chosen["teachers"]) == (SIZES[1], 1)
    assert chosen["teacher_overrides"]["max_steps"] == pytest.approx(2.5 * 1_003_854 / 1536, abs=1)
    assert chosen["weight_decay"] == 0.0


@pytest.mark.parametrize("given", [{"teachers": 0}, {"label_smoothing_factor": 0.1}])
def test_there_are_none_where_something_else_is_given(given):
    assert "teachers" not in chosen_for(60, **given)


@pytest.mark.parametrize(("minutes", "elapsed", "count"), [(10.0, 0, 7), (10.0, 300, 3), (2.0, 0, 1), (1.0, 0, 1)])
def test_the_time_of_the_teachers_is_part_of_the_minutes(minutes, elapsed, count):
    measured, found = [], costs(0.1, forward=0.02, finish=2.0)
    facts = Facts(67_900)
    resolved = resolve({"minutes": minutes}, facts, lambda each: measured.append(each) or found, lambda: float(elapsed))
    teachers = teacher_settings(resolved.settings)
    steps, interval = resolved.settings["max_steps"], resolved.settings["eval_steps"]
    one = teachers[0]["max_steps"] * 0.1 + 2 * 1.0 + 2.0
    last = steps * (0.1 + len(teachers) * 0.02) + steps / interval * 1.0 + 2.0
    assert len(teachers) == count
    assert 0.9 * 60 * minutes < elapsed + len(teachers) * one + last < 60 * minutes
    assert any("trained first" in line for line in resolved.lines)
    dropouts = [json.loads(each["model_overrides"])["hidden_dropout"] for each in measured]
    theirs = json.loads(teachers[0]["model_overrides"])["hidden_dropout"]
    assert dropouts == ([0.0] if minutes == 1 else [0.0, theirs])  # teachers are timed with theirs, the run without


def test_teachers_of_a_preset_take_as_many_steps_as_the_run():
    found = costs(0.1, forward=0.02, finish=2.0)
    resolved = resolve({"minutes": 5.0, "teachers": 2, "preset": "modern-1m"}, Facts(10**6), lambda _: found)
    steps, interval = resolved.settings["max_steps"], resolved.settings["eval_steps"]
    assert [each["max_steps"] for each in teacher_settings(resolved.settings)] == [steps, steps]
    around = 2 * (2 * 1.0 + 2.0) + steps / interval * 1.0 + 2.0
    assert 0.95 * 300 < steps * (3 * 0.1 + 2 * 0.02) + around < 300
    assert resolved.recorded["seconds_per_step"] == pytest.approx(0.14)


@pytest.mark.parametrize("count", [1, 4])
def test_the_steps_of_teachers_are_chosen_for_the_number_that_is_given(count):
    found = costs(0.1, forward=0.02, finish=2.0)
    resolved = resolve({"minutes": 5.0, "teachers": count}, Facts(500_000), lambda _: found)
    teachers, steps = teacher_settings(resolved.settings), resolved.settings["max_steps"]
    assert len(teachers) == count
    assert teachers[0]["max_steps"] < steps
    assert json.loads(resolved.settings["model_overrides"])["hidden_dropout"] == 0.0
    around = count * (2 * 1.0 + 2.0) + steps / resolved.settings["eval_steps"] * 1.0 + 2.0
    assert 0.9 * 300 < count * teachers[0]["max_steps"] * 0.1 + steps * (0.1 + count * 0.02) + around < 300
    assert f"trained first, in {teachers[0]['max_steps']:,} steps" in resolved.lines[1]
    assert "the text is short" not in resolved.lines[1]


def test_many_teachers_leave_no_time_for_a_larger_model():
    def measure(settings):
        return costs(0.05 if json.loads(settings["model_overrides"])["hidden_size"] == 128 else 0.12)

    def width(count: int) -> int:
        return choose({"minutes": 10, "teachers": count}, 1_003_854, measure)[0].fields["hidden_size"]

    assert (width(0), width(8)) == (192, 128)


def test_teachers_write_no_samples():
    found = Costs(3.0, 0.1, 0.1, evaluation=2.0, checkpoint=0.5, finish=4.0, sample=1.0, last_sample=2.5)
    assert around_steps(found) == pytest.approx(2.0 + 2 * 1.5 + 1.5)


def test_teachers_that_take_longer_are_timed_for_themselves():
    def measure(settings):
        return costs(1.0 if "modern-10m" in settings["preset"] else 0.1, finish=2.0)

    given = {"minutes": 10.0, "teachers": 2, "preset": "modern-1m"}
    resolved = resolve(
        {**given, "teacher_overrides": '{"preset": "modern-10m", "max_steps": 100}'}, Facts(10**7), measure
    )
    assert 3000 < resolved.settings["max_steps"] < 4000  # of 600 seconds, 200 and more are the teachers'


def test_most_of_the_time_must_be_left_for_steps():
    def choose_with(finish: float) -> dict:
        found = dataclasses.replace(costs(0.1, evaluation=0.0), finish=finish)
        return choose({"minutes": 1.0}, 600 * 1536 // 10, lambda _: found)[1]

    assert choose_with(6.0)["teachers"] == 1
    assert "teachers" not in choose_with(8.0)


def test_a_run_that_has_learned_from_its_teachers_is_limited_by_the_text():
    resolved = resolve({"minutes": 60.0}, Facts(67_900), lambda _: costs(0.1, forward=0.02))
    steps = resolved.settings["max_steps"]
    assert steps == math.ceil(20 * 67_900 / 1536)
    assert auto.budget(resolved)["limited_by_text"]


def test_a_run_with_minutes_on_a_short_text_has_teachers_and_resumes(settings, tmp_path, monkeypatch):
    def time_run(build, args, data, *_, **__):
        return dataclasses.replace(costs(0.1, forward=0.01), evaluation=0.1, tokens_per_step=data.tokens_per_step)

    fields = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 32}
    monkeypatch.setattr(sizes, "SIZES", (dataclasses.replace(SIZES[0], fields=fields),))
    monkeypatch.setattr(sizes, "PASSES_WITH_TEACHERS", 0.1)
    monkeypatch.setattr(sizes, "LEAST_STEPS", 1)
    monkeypatch.setattr(train, "time_run", time_run)
    monkeypatch.setattr(train.Measure, "elapsed", lambda _: 0.0)
    open_settings = {name: settings[name] for name in ("train_file", "output_dir", "eval_sample_length")}
    open_settings |= {"minutes": 0.1, "sample_length": 10}
    record = start_from(**{**open_settings, "output_dir": str(tmp_path / "whole")}).train()
    steps = json.loads(record["arguments"]["teacher_overrides"])["max_steps"]
    assert record["arguments"]["teachers"] >= 1
    interrupt_teacher(open_settings, 1, steps // 2, monkeypatch)
    monkeypatch.setattr(train, "time_run", lambda *_, **__: pytest.fail("measured again"))
    start_from(**open_settings).train()
    assert same_weights(tmp_path / "run", tmp_path / "whole")


def test_what_is_given_holds_for_the_teachers_too():
    given = {"minutes": 1, "weight_decay": 0.7, "model_overrides": '{"hidden_dropout": 0.3, "hidden_size": 64}'}
    resolved = sizes.apply(chosen_for(60), given)
    assert resolved["teachers"] == 2
    (teacher, _) = teacher_settings(resolved)
    assert teacher["weight_decay"] == 0.7
    fields = json.loads(teacher["model_overrides"])
    assert (fields["hidden_dropout"], fields["hidden_size"]) == (0.3, 64)


def test_what_is_overridden_replaces_only_that():
    overrides = {"learning_rate": 0.004, "model_overrides": {"hidden_dropout": 0.3}}
    chosen = chosen_for(60)
    resolved = sizes.apply(chosen, {"minutes": 1, "teacher_overrides": json.dumps(overrides)})
    (teacher, _) = teacher_settings(resolved)
    assert teacher["max_steps"] == chosen["teacher_overrides"]["max_steps"]
    assert (teacher["learning_rate"], teacher["weight_decay"]) == (0.004, 2.0)
    assert json.loads(teacher["model_overrides"])["hidden_dropout"] == 0.3
    assert resolved["learning_rate"] == 6e-3


def test_larger_sizes_have_no_teachers():
    tokens = SIZES[2].min_tokens
    assert chosen_for(12, tokens)["model_overrides"]["hidden_size"] == SIZES[2].fields["hidden_size"]
    assert "teachers" not in chosen_for(12, tokens)
