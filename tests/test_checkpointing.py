"""Checkpoints after a kill, on a full disk, damaged or of another run: resume is exact, or refused in one line."""

import contextlib
import errno
import fcntl
import json
import os
import pickle
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from helpers import files, in_child, interrupted, kill_at, refused, same_weights, toy_run, train_tiny
from transformers import Trainer, TrainerCallback

from modeling_gptlite.runs import run as run_module
from modeling_gptlite.runs.resume import ResumeError
from modeling_gptlite.runs.train import start_from
from modeling_gptlite.training import trainer as trainer_module
from modeling_gptlite.training.checkpointing import LOCK, CheckpointError, Checkpoints
from modeling_gptlite.training.trainer import CausalLMTrainer
from scripts.cli import run


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "max_position_embeddings": 32}
DROPOUT = {**SMALL, "attention_dropout": 0.1, "hidden_dropout": 0.1, "embedding_dropout": 0.1}


@pytest.mark.parametrize(
    ("optimizer", "accumulation"), [("adamw", 1), ("adamw", 2), ("muon", 1), ("muon", 2)], ids=lambda value: str(value)
)
def test_a_run_that_is_killed_three_times_ends_as_if_undisturbed(optimizer, accumulation, text_file, tmp_path):
    flags = [
        f"--model_overrides={json.dumps(DROPOUT)}",
        f"--optimizer={optimizer}",
        "--precision=fp32",
        f"--gradient_accumulation_steps={accumulation}",
    ]
    train_tiny(text_file, tmp_path / "undisturbed", *flags)
    deaths = [
        (Trainer, "training_step", 14 * accumulation),  # in a step, after the checkpoint of step 10
        (Checkpoints, "_seal", 1),  # while the checkpoint of step 20 is saved
        (CausalLMTrainer, "evaluation_loop", 1),  # in the evaluation at step 20
    ]
    for where in deaths:
        with pytest.MonkeyPatch.context() as patch:
            kill_at(*where, patch)
            assert in_child(lambda: train_tiny(text_file, tmp_path / "killed", *flags)) == -signal.SIGKILL
    train_tiny(text_file, tmp_path / "killed", *flags)
    assert same_weights(tmp_path / "killed", tmp_path / "undisturbed")
    one, other = (json.loads((tmp_path / run / "run.json").read_text()) for run in ("killed", "undisturbed"))
    assert one["results"]["loss"] == other["results"]["loss"]
    assert not (tmp_path / "killed" / ".saving").exists()


@pytest.mark.parametrize("streaming", ["false", "true"])
def test_a_run_on_shards_of_rows_sees_the_same_samples_after_it_was_killed(streaming, tmp_path, monkeypatch):
    (tmp_path / "rows").mkdir()
    for shard in range(3):
        rows = [json.dumps({"text": f"shard {shard}, row {row}: it is as it was."}) + "\n" for row in range(100)]
        (tmp_path / "rows" / f"train-{shard:05}-of-00003.jsonl").write_text("".join(rows))
    flags = [f"--dataset={tmp_path / 'rows'}", f"--streaming={streaming}", "--precision=fp32"]
    seen, step = [], Trainer.training_step

    def watched(self, model, inputs, *args, **kwargs):
        seen.append((self.state.global_step, inputs["input_ids"].tolist()))
        return step(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", watched)
    train_tiny(None, tmp_path / "undisturbed", *flags)
    undisturbed = dict(seen)
    with pytest.MonkeyPatch.context() as patch:
        kill_at(Trainer, "training_step", 14, patch)
        assert in_child(lambda: train_tiny(None, tmp_path / "killed", *flags)) == -signal.SIGKILL
    seen.clear()
    train_tiny(None, tmp_path / "killed", *flags)
    assert dict(seen) == {number: windows for number, windows in undisturbed.items() if number >= 10}
    assert len(undisturbed) == 20
    assert same_weights(tmp_path / "killed", tmp_path / "undisturbed")


def test_a_run_killed_before_its_first_checkpoint_begins_again(trained, text_file, tmp_path, monkeypatch):
    kill_at(Checkpoints, "_seal", 1, monkeypatch)
    assert in_child(lambda: train_tiny(text_file, tmp_path)) == -signal.SIGKILL
    assert Checkpoints(tmp_path).all() == []
    monkeypatch.undo()
    train_tiny(text_file, tmp_path)
    assert same_weights(tmp_path, trained)


def test_a_run_killed_after_its_last_step_is_finished(trained, text_file, tmp_path, monkeypatch):
    kill_at(run_module, "evaluate_loss", 1, monkeypatch)
    assert in_child(lambda: train_tiny(text_file, tmp_path)) == -signal.SIGKILL
    monkeypatch.undo()
    train_tiny(text_file, tmp_path)
    assert same_weights(tmp_path, trained)


def test_all_files_of_a_run_get_their_permissions_from_the_umask(trained, tmp_path):
    (tmp_path / "a").touch()
    expected = (tmp_path / "a").stat().st_mode
    assert not [path for path in trained.rglob("*") if path.is_file() and path.stat().st_mode != expected]


# ---- Damage --------------------------------------------------------------------------------------------------------


@pytest.fixture
def unfinished(trained, tmp_path) -> Path:
    """A run that was killed after its last checkpoint."""
    for checkpoint in trained.glob("checkpoint-*"):
        shutil.copytree(checkpoint, tmp_path / "run" / checkpoint.name)
    return tmp_path / "run"


def truncate(path: Path):
    os.truncate(path, path.stat().st_size // 2)


def flip_a_bit(path: Path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "truncated weights": ("model.safetensors", truncate, "bytes instead of"),
    "one bit of the weights": ("model.safetensors", flip_a_bit, "the sha256 of model.safetensors differs"),
    "one bit of the optimizer": ("optimizer.pt", flip_a_bit, "the sha256 of optimizer.pt differs"),
    "no state": ("trainer_state.json", Path.unlink, "trainer_state.json is missing"),
    "no manifest": ("manifest.json", Path.unlink, "it has no manifest.json"),
    "half a manifest": ("manifest.json", truncate, "its manifest.json cannot be read"),
    "a file too many": ("pytorch_model.bin", lambda path: path.write_bytes(b"x"), "pytorch_model.bin was added"),
}


@pytest.mark.parametrize(("name", "harm", "told"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_used(
    name, harm, told, unfinished, trained, text_file, capsys
):
    harm(unfinished / "checkpoint-20" / name)
    train_tiny(text_file, unfinished)
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("checkpoint-20 is damaged ("))
    assert told in line
    assert line.endswith("); falling back to checkpoint-10")
    assert same_weights(unfinished, trained)
    assert (unfinished / "damaged-checkpoint-20").is_dir()


def test_a_run_whose_checkpoints_are_all_damaged_is_refused(unfinished, text_file, capsys):
    for checkpoint in unfinished.glob("checkpoint-*"):
        truncate(checkpoint / "model.safetensors")
    before = files(unfinished)
    told = ["all checkpoints", "are damaged", "checkpoint-10: model.safetensors has", "checkpoint-20"]
    refused(train_main(text_file, unfinished), capsys=capsys, told=told)
    assert files(unfinished) == before


def test_a_damaged_checkpoint_named_on_the_command_line_is_refused(unfinished, text_file, capsys):
    truncate(unfinished / "checkpoint-10" / "scheduler.pt")
    flag = f"--resume_from_checkpoint={unfinished / 'checkpoint-10'}"
    refused(train_main(text_file, unfinished, flag), capsys=capsys, told=["not an intact checkpoint", "scheduler.pt"])


def test_a_damaged_best_checkpoint_is_reported_and_the_advice_works(text_file, tmp_path, monkeypatch, capsys):
    evaluate = CausalLMTrainer.evaluation_loop

    def harm_the_best(self, *args, **kwargs):
        if self.state.global_step == 10:
            flip_a_bit(Path(self.state.best_model_checkpoint) / "model.safetensors")
        return evaluate(self, *args, **kwargs)

    monkeypatch.setattr(CausalLMTrainer, "evaluation_loop", harm_the_best)
    told = ["lowest validation loss, is damaged (the sha256 of model.safetensors differs)", "--load_best_model_at_end"]
    refused(train_main(text_file, tmp_path, *WILD), capsys=capsys, told=told)
    monkeypatch.undo()
    train_tiny(text_file, tmp_path, *WILD, "--load_best_model_at_end=false")
    assert same_weights(tmp_path, tmp_path / "checkpoint-10")


def test_a_full_disk_under_the_cache_is_reported(text_file, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("GPTLITE_CACHE", str(tmp_path / "cache"))

    def work():
        limit_file_size(1000)
        run(train_main(text_file, tmp_path / "run"))

    assert in_child(work) == 2
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert "cannot store the ids" in line
    assert "GPTLITE_CACHE" in line
    assert not list(tmp_path.rglob("*.*"))


def train_main(text_file, folder, *flags):
    """`train_tiny` as a command."""
    return lambda _=None: train_tiny(text_file, folder, *flags)


# ---- Full disks ----------------------------------------------------------------------------------------------------


def limit_file_size(size: int):
    """No file of this process may grow beyond `size` bytes: writes fail as they do on a full disk."""
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@pytest.mark.parametrize("limit", [20_000, 90_000, 130_000], ids=["at the weights", "later", "at the optimizer"])
def test_a_full_disk_ends_in_one_line_and_keeps_the_older_checkpoint(
    limit, trained, text_file, tmp_path, monkeypatch, capfd
):
    shutil.copytree(trained / "checkpoint-10", tmp_path / "checkpoint-10")

    save = CausalLMTrainer._save_checkpoint

    def full(self, *args):
        limit_file_size(limit)
        save(self, *args)

    monkeypatch.setattr(CausalLMTrainer, "_save_checkpoint", full)
    assert max(path.stat().st_size for path in (tmp_path / "checkpoint-10").iterdir()) > limit
    assert in_child(lambda: run(train_main(text_file, tmp_path))) == 2
    monkeypatch.undo()
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert line.startswith("error: cannot write checkpoint-20 (")
    assert "free some disk space and repeat the command to resume from checkpoint-10" in line
    assert {path.name for path in tmp_path.iterdir()} - {"samples.md"} == {"checkpoint-10"}
    assert Checkpoints.damage(tmp_path / "checkpoint-10") is None
    train_tiny(text_file, tmp_path)
    assert same_weights(tmp_path, trained)


@pytest.mark.parametrize("at", ["_seal", "_rename"])
def test_no_space_at_any_point_of_a_checkpoint(at, text_file, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Checkpoints, at, full)
    told = ["cannot write checkpoint-10 ([Errno 28] No space left on device)", "there is no checkpoint yet"]
    refused(train_main(text_file, tmp_path), capsys=capsys, told=told)
    assert [path.name for path in tmp_path.iterdir()] == ["samples.md"]


# ---- Rotation ------------------------------------------------------------------------------------------------------


# Learns during warm-up, then is thrown off: the best checkpoint is an early one.
WILD = [
    *("--max_steps=10", "--eval_steps=1", "--save_steps=1", "--warmup_steps=15"),
    *("--learning_rate=0.5", "--muon_learning_rate=2"),
]


def test_rotation_keeps_the_newest_and_the_best_undamaged(text_file, tmp_path):
    train_tiny(text_file, tmp_path, *WILD)
    best = json.loads((tmp_path / "run.json").read_text())["results"]["best_step"]
    assert best < 9
    kept = Checkpoints(tmp_path).all()
    assert [path.name for path in kept] == ["checkpoint-10", f"checkpoint-{best}"]
    assert [Checkpoints.damage(path) for path in kept] == [None, None]


@pytest.fixture
def losses(monkeypatch):
    """Validation losses of a run's ten evaluations: the third is the lowest."""
    values = iter([3.0, 2.0, 1.0, *range(2, 9)])
    monkeypatch.setattr(trainer_module, "mean_loss", lambda _: next(values))


@pytest.mark.parametrize("strategy", ["steps", "best"])
def test_the_best_weights_are_kept_between_two_checkpoints(strategy, losses, text_file, tmp_path):
    """A run is evaluated more often than it is saved; it ends, or is stopped, after the best evaluation."""
    settings = toy_run(text_file, tmp_path / "run", max_steps=10, eval_steps=1, save_steps=10, save_strategy=strategy)
    interrupted(start_from(**settings), 9)
    assert [path.name for path in Checkpoints(tmp_path / "run").all()] == ["checkpoint-9", "checkpoint-3"]
    assert start_from(**settings).train()["results"]["best_step"] == 3
    assert same_weights(tmp_path / "run", tmp_path / "run" / "checkpoint-3")


def test_a_run_of_an_older_version_whose_best_weights_were_not_saved_ends_with_those_that_were(text_file, tmp_path):
    settings = {**toy_run(text_file, tmp_path / "run"), "max_steps": 10, "eval_steps": 5, "save_steps": 5}
    interrupted(start_from(**settings), 6)
    run = start_from(**settings)
    run.trainer.state.best_metric = 0.0

    class Unsaved(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            state.best_metric, state.best_global_step = 0.0, 3

    run.trainer.add_callback(Unsaved())
    assert run.train()["results"]["best_step"] == 5


def test_with_a_limit_of_one_a_stopped_run_resumes_from_where_it_was_stopped(losses, text_file, tmp_path):
    settings = toy_run(text_file, tmp_path / "run", max_steps=10, eval_steps=1, save_steps=1, save_total_limit=1)
    interrupted(start_from(**settings), 9)
    assert start_from(**settings).checkpoint.name == "checkpoint-9"


def test_a_run_that_lost_its_checkpoints_is_not_continued_from_trained_weights(text_file, tmp_path):
    run = interrupted(start_from(**{**toy_run(text_file, tmp_path / "run"), "max_steps": 10}), 4)
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    with pytest.raises(ResumeError, match="prepare it again"):
        run.train()


def test_a_resumed_run_logs_as_it_is_asked(text_file, tmp_path):
    settings = {**toy_run(text_file, tmp_path / "run"), "max_steps": 12, "logging_steps": 100}
    interrupted(start_from(**settings), 4)
    rows = start_from(**{**settings, "logging_steps": 2}).train()["log_history"]
    assert [row["step"] for row in rows if "grad_norm" in row] == [6, 8, 10, 12]


def test_a_checkpoint_that_is_written_again_replaces_the_other_only_when_it_is_there(tmp_path, monkeypatch):
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "checkpoint-2" / "a").write_text("old")
    with Checkpoints(tmp_path).write(2, run={}) as folder:
        folder.mkdir(parents=True)
        (folder / "a").write_text("new")
    assert (tmp_path / "checkpoint-2" / "a").read_text() == "new"
    assert not (tmp_path / ".saving").exists()


def test_a_run_that_moved_still_ends_with_its_best_weights(text_file, tmp_path):
    train_tiny(text_file, tmp_path / "here", *WILD)
    (tmp_path / "there").mkdir()
    for checkpoint in Checkpoints(tmp_path / "here").all():
        checkpoint.rename(tmp_path / "there" / checkpoint.name)
    train_tiny(text_file, tmp_path / "there", *WILD)
    assert same_weights(tmp_path / "there", tmp_path / "here")


# ---- The same run --------------------------------------------------------------------------------------------------


CHANGES = {
    "learning rate": (["--learning_rate=0.5"], ["learning_rate", "0.001", "0.5"]),
    "seed": (["--seed=7"], ["seed", "42", "7"]),
    "steps": (["--max_steps=30"], ["max_steps", "20", "30"]),
    "batch": (["--per_device_train_batch_size=4"], ["windows per step", "8", "4"]),
    "optimizer": (["--optimizer=adamw"], ["optimizer", "muon", "adamw"]),
    "architecture": (
        ['--model_overrides={"hidden_size": 32, "num_hidden_layers": 1, "max_position_embeddings": 32}'],
        ["model_overrides"],
    ),
    "tokenizer": (["--tokenizer=word"], ["tokenizer"]),
    "validation": (["--validation_fraction=0.2"], ["tokens to train and validate"]),
    "precision": (["--precision=fp32"], ["precision", "fp32"]),
    "evaluations": (["--eval_steps=5"], ["eval_steps", "10", "5"]),
}


@pytest.mark.parametrize(("flags", "told"), CHANGES.values(), ids=CHANGES)
def test_another_run_is_not_resumed(flags, told, unfinished, text_file, capsys):
    before = files(unfinished)
    refused(train_main(text_file, unfinished, *flags), capsys=capsys, told=["belongs to another run", *told])
    assert files(unfinished) == before


def test_another_text_is_not_resumed(unfinished, text_file, tmp_path, capsys):
    (tmp_path / "other.txt").write_text(text_file.read_text()[:-1] + "!")
    refused(train_main(tmp_path / "other.txt", unfinished), capsys=capsys, told=["another run", "text (sha256)"])


def test_what_does_not_change_the_result_may_change(unfinished, trained, text_file, tmp_path):
    (tmp_path / "renamed.txt").write_bytes(text_file.read_bytes())
    flags = ["--per_device_train_batch_size=4", "--gradient_accumulation_steps=2", "--save_total_limit=5"]
    train_tiny(tmp_path / "renamed.txt", unfinished, *flags, "--logging_steps=2", "--sample_length=5")
    assert same_weights(unfinished, trained)


# ---- Two runs in one folder ----------------------------------------------------------------------------------------


@pytest.fixture
def busy(unfinished, tmp_path):
    """The number of another process that trains in the folder of the unfinished run."""
    child = os.fork()
    if child == 0:
        with Checkpoints(unfinished).locked():
            (tmp_path / "locked").touch()
            time.sleep(300)
    while not (tmp_path / "locked").exists():
        time.sleep(0.01)
    yield child
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_a_second_process_in_a_folder_is_refused(busy, unfinished, text_file, capsys):
    before = files(unfinished)
    told = [f"another process (process {busy}) writes in", "choose another --output_dir"]
    refused(train_main(text_file, unfinished), capsys=capsys, told=told)
    assert files(unfinished) == before


def lock(folder):
    with Checkpoints(folder).locked():
        pass


def test_the_lock_ends_with_its_process_even_if_a_child_survives(tmp_path):
    with Checkpoints(tmp_path).locked():
        lock(tmp_path)  # nested calls share it
        child = os.fork()
        if child == 0:
            time.sleep(300)
            os._exit(0)  # not the rest of the tests
        assert in_child(lambda: lock(tmp_path)) == 1
    assert in_child(lambda: lock(tmp_path)) == 0
    assert os.listdir(tmp_path) == []
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_a_killed_process_leaves_a_folder_that_the_next_one_locks(tmp_path):
    def work():
        with Checkpoints(tmp_path).locked():
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(work) == -signal.SIGKILL
    assert in_child(lambda: lock(tmp_path)) == 0
    assert os.listdir(tmp_path) == []


def test_a_process_that_waits_for_a_lock_file_that_was_deleted_does_not_hold_the_next_one(tmp_path, monkeypatch):
    """Or two processes would train in one folder: one with the deleted file, one with the new one."""
    flock, taken = fcntl.flock, []

    def first_another_process_ends_and_one_begins(descriptor, operation):
        if not taken and operation & fcntl.LOCK_EX:
            (tmp_path / LOCK).unlink()
            taken.append(other := os.open(tmp_path / LOCK, os.O_RDWR | os.O_CREAT))
            flock(other, fcntl.LOCK_EX)
        return flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", first_another_process_ends_and_one_begins)
    with pytest.raises(CheckpointError, match="another process"):
        lock(tmp_path)
    os.close(taken[0])


def test_a_folder_that_does_not_exist_is_not_created(tmp_path):
    lock(tmp_path / "new")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("number", "told"), [(errno.EROFS, "cannot write in .*: Read-only file system; choose another"), (errno.ENOLCK, "")]
)
def test_a_read_only_folder_is_an_error_and_one_without_locks_is_not(number, told, tmp_path, monkeypatch):
    def acquire(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("filelock.FileLock.acquire", acquire)
    with pytest.raises(CheckpointError, match=told) if told else contextlib.nullcontext():
        lock(tmp_path)


# ---- Pickles -------------------------------------------------------------------------------------------------------


class Planted:
    """What a pickle does when it is loaded."""

    def __init__(self, flag: Path):
        self.flag = flag

    def __reduce__(self):
        return Path.touch, (self.flag,)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "pytorch_model.bin"])
def test_a_pickle_in_a_checkpoint_is_never_run(name, unfinished, text_file, tmp_path, capsys):
    flag = tmp_path / "executed"
    checkpoint = unfinished / "checkpoint-10"
    shutil.rmtree(unfinished / "checkpoint-20")
    if name == "pytorch_model.bin":
        (checkpoint / "model.safetensors").unlink()
    torch.save({"state": Planted(flag)}, checkpoint / name)
    Checkpoints(unfinished)._seal(checkpoint, Checkpoints.recorded_run(checkpoint))  # so can an attacker
    with pytest.raises(pickle.UnpicklingError):
        train_tiny(text_file, unfinished)
    assert not flag.exists()


def test_rotation_deletes_the_smallest_steps_without_a_warning_about_file_times(tmp_path, monkeypatch):
    for step in (30, 9, 20, 10):  # within a second
        (tmp_path / f"checkpoint-{step}").mkdir()
    monkeypatch.setattr("transformers.trainer_utils.logger.warning_once", pytest.fail)
    Checkpoints(tmp_path).rotate(2, best=str(tmp_path / "checkpoint-9"))
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-9", "checkpoint-30"}
