"""Train or fine-tune a causal language model with the Hugging Face Trainer.

python -m scripts.train --config recipes/quickstart.yaml
python -m scripts.train --preset modern-1m --train_file my_book.txt --max_steps 1000
"""

import contextlib
import hashlib
import json
import math
import os
import time
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from modeling_gptlite.training.trainer import CausalLMTrainingArguments
from scripts.cli import (
    LOADING_ERRORS,
    Parser,
    SourceArguments,
    UserError,
    encode_splits,
    load_pretrained,
    load_source,
    load_tokenizer,
    longest_text,
    printable,
    reason,
    run,
    say_unknown,
    shown,
)


TOKENIZERS = ("char", "bpe", "word")  # that are made from the text
CARD_TEMPLATE = Path(__file__).parent.parent / "model_card.md"
# Arguments that change where a run goes, not what comes out of it; a recipe to repeat it does without them.
NOT_OF_THE_MODEL = {"output_dir", "resume_from_checkpoint", "push_to_hub", "hub_model_id", "hub_always_push"}
# What a run that is gone on with may change beside these: how it is spread over devices, what it reports and keeps;
# and where its text and its steps come from, which `identify` tells by what they are.
MAY_CHANGE = NOT_OF_THE_MODEL | {
    *("train_file", "dataset", "dataset_config", "text_column", "streaming", "language", "license"),
    *(
        "sample_prompt",
        "sample_length",
        "eval_sample_length",
        "max_steps",
        "num_train_epochs",
        "precision",
        "bf16",
        "fp16",
    ),
    *("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", "use_cpu"),
    *("fsdp", "fsdp_config", "deepspeed", "accelerator_config", "parallelism_config", "torch_compile"),
    *("save_total_limit", "report_to", "run_name", "disable_tqdm", "hub_token", "hub_private_repo", "hub_strategy"),
}
MAY_CHANGE_PREFIXES = ("dataloader_", "ddp_", "log", "trackio_", "activation_checkpointing", "gradient_checkpointing")


@dataclass
class ModelArguments:
    """The model: a preset to start from, or a saved one to go on with."""

    preset: str = field(
        default="modern-1m",
        metadata={
            "help": "Architecture to train from scratch: classic-10m, nanogpt-10m, gpt2-124m, modern-1m, modern-10m "
            "or modern-124m."
        },
    )
    model_overrides: str | None = field(
        default=None,
        metadata={"help": "Fields of the preset to replace, as JSON: '{\"num_hidden_layers\": 8}'."},
    )
    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Folder or Hub name of a model to continue or fine-tune, instead of a preset."},
    )
    tokenizer: str | None = field(
        default=None,
        metadata={
            "help": "char, bpe, word, or the folder or Hub name of one. Default: the model's own, else char.",
        },
    )
    vocab_size: int = field(default=1024, metadata={"help": "Tokens of a bpe or word vocabulary."})
    lora_r: int | None = field(
        default=None,
        metadata={"help": "Rank of LoRA matrices to train beside the saved model's, which stay as they are."},
    )
    lora_alpha: int | None = field(
        default=None, metadata={"help": "LoRA's output is scaled by alpha / rank. Default: twice the rank."}
    )
    lora_dropout: float = field(default=0.0, metadata={"help": "Probability of dropout on LoRA's input."})


@dataclass
class DataArguments(SourceArguments):
    """The text, and what is made of it."""

    context_length: int | None = field(
        default=None, metadata={"help": "Tokens per window. Default: the model's context."}
    )
    language: str | None = field(
        default=None, metadata={"help": "The text's language for the card, en for example. Default: en if built in."}
    )
    license: str | None = field(
        default=None, metadata={"help": "The model's licence for the card. Default: mit if the text is built in."}
    )
    sample_prompt: str | None = field(
        default=None,
        metadata={"help": "What the sample texts continue. Default: a newline, or the first validation prompt."},
    )
    eval_sample_length: int = field(
        default=64, metadata={"help": "Tokens of the sample before training and at each evaluation; 0 for none."}
    )
    sample_length: int = field(default=500, metadata={"help": "Tokens of the sample text at the end; 0 for none."})

    def __post_init__(self):
        for name in ("eval_sample_length", "sample_length"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name} must be 0 (none) or more, got {getattr(self, name)}")


def main(argv: list[str] | None = None):
    from modeling_gptlite.training.checkpoints import CheckpointError
    from modeling_gptlite.training.data import DataError
    from modeling_gptlite.training.hub import HubError

    parser = Parser((ModelArguments, DataArguments, CausalLMTrainingArguments), __doc__)
    arguments = parser.parse(argv)
    try:
        train(*arguments, parser.given)
    except (CheckpointError, DataError, HubError) as error:
        raise UserError(error) from error


def train(
    model_args: ModelArguments, data_args: DataArguments, args: CausalLMTrainingArguments, given: dict[str, Any]
) -> None:
    """Train, evaluate, sample and save: everything that `python -m scripts.train` does after reading its flags.

    Args:
        given: The arguments that recipe and flags gave, for `run.json`.
    """
    import transformers

    from modeling_gptlite.training.callbacks import LiveLine, Samples, StopOnSignal
    from modeling_gptlite.training.hub import hub_errors
    from modeling_gptlite.training.lora import add_lora
    from modeling_gptlite.training.report import describe_environment, without_places
    from modeling_gptlite.training.trainer import CausalLMTrainer, whole_model

    transformers.utils.logging.disable_progress_bar()  # `LiveLine` is the progress
    check_numbers(args)
    transformers.set_seed(args.seed)
    check_output_dir(Path(args.output_dir), args)
    check_lora(model_args, args)
    check_report_to(args)
    with args.main_process_first():  # the others find the text and its ids in the cache
        source = load_source(data_args)
        model, tokenizer = load_model_and_tokenizer(model_args, source)
        train_windows, validation_windows, data = make_windows(source, tokenizer, model, data_args, args)
    tokens_per_step = round(len(train_windows) // args.max_steps * train_windows.tokens_per_sample)
    if model_args.lora_r is not None:
        model = add_lora(model, model_args.lora_r, model_args.lora_alpha, model_args.lora_dropout)
    identity = identify(given, args, data, tokenizer, model)
    checkpoint = find_checkpoint(args, identity)
    facts = {
        "arguments": without_places({name: given[name] for name in given if name not in NOT_OF_THE_MODEL}),
        "environment": describe_environment(args.device),
        "data": data,
        "parameters": model.num_parameters(),
        "prompt": data_args.sample_prompt,
        "lora_rank": model_args.lora_r,
        **origin(model_args.model_name_or_path),
    }
    stop = StopOnSignal()
    # With --push_to_hub the Trainer makes the repository right away.
    with hub_errors(args.hub_model_id or args.output_dir) if args.push_to_hub else contextlib.nullcontext():
        trainer = CausalLMTrainer(
            model,
            args,
            train_dataset=train_windows,
            eval_dataset=validation_windows,
            processing_class=tokenizer,
            callbacks=[LiveLine(tokens_per_step), stop],
            card=lambda trainer: interim_card(trainer, facts, tokens_per_step),
            run=identity,
        )
    trainer.remove_callback(transformers.PrinterCallback)
    if data_args.eval_sample_length:
        writing = {"length": data_args.eval_sample_length, "seed": args.seed, "longest": longest_text(model)}
        trainer.add_callback(Samples(tokenizer, data_args.sample_prompt, **writing))
    announce(args, data, model, tokens_per_step)
    result = trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    if stop.received and trainer.state.global_step < args.max_steps:
        say(args, f"\nstopped at step {trainer.state.global_step:,}; the same command goes on from there")
        raise SystemExit(128 + stop.received)
    model = whole_model(
        trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False, keep_torch_compile=False)
    )
    if trainer.is_world_process_zero():
        finish(trainer, model, result, data_args, facts, tokens_per_step)
        if args.push_to_hub:
            publish(trainer)


# ---- Before training -----------------------------------------------------------------------------------------------


def check_numbers(args: CausalLMTrainingArguments) -> None:
    rules = [
        ("per_device_train_batch_size", args.per_device_train_batch_size >= 1, "at least 1"),
        ("per_device_eval_batch_size", args.per_device_eval_batch_size >= 1, "at least 1"),
        ("gradient_accumulation_steps", args.gradient_accumulation_steps >= 1, "at least 1"),
        ("num_train_epochs", args.max_steps > 0 or 0 < args.num_train_epochs < math.inf, "above 0"),
        ("learning_rate", 0 <= args.learning_rate < math.inf, "0 or more"),
        ("muon_learning_rate", 0 <= args.muon_learning_rate < math.inf, "0 or more"),
        ("weight_decay", 0 <= args.weight_decay < math.inf, "0 or more"),
        ("adam_beta1", 0 <= args.adam_beta1 < 1, "at least 0 and below 1"),
        ("adam_beta2", 0 <= args.adam_beta2 < 1, "at least 0 and below 1"),
        ("seed", 0 <= args.seed < 1 << 32, "between 0 and 4,294,967,295"),
        ("eval_steps", args.eval_steps is None or args.eval_steps > 0, "above 0"),
        ("save_steps", args.save_steps > 0, "above 0"),
        ("logging_steps", args.logging_steps > 0, "above 0"),
    ]
    for name, is_right, allowed in rules:
        if not is_right:
            raise UserError(f"--{name} must be {allowed}, got {getattr(args, name)}")


def check_output_dir(output_dir: Path, args: CausalLMTrainingArguments) -> None:
    from modeling_gptlite.training.checkpoints import all_checkpoints

    resume = args.resume_from_checkpoint = str(args.resume_from_checkpoint or "false")
    for path in (output_dir, *output_dir.parents):
        if path.exists() and not path.is_dir():
            raise UserError(f"{path} is not a folder; choose another --output_dir")
    if resume.lower() not in ("auto", "true", "false"):
        if not os.path.isdir(resume):
            raise UserError(f"no checkpoint to resume from in {resume}; allowed are auto, true, false or a checkpoint")
        return
    args.resume_from_checkpoint = resume.lower()
    if resume.lower() == "true":
        if not all_checkpoints(output_dir):
            raise UserError(f"no checkpoint to resume from in {output_dir}")
    elif (output_dir / "run.json").exists():
        raise UserError(f"{output_dir} holds a finished run; choose another --output_dir, or delete the folder")
    elif resume.lower() == "false" and all_checkpoints(output_dir):
        raise UserError(
            f"{output_dir} holds an unfinished run; --resume_from_checkpoint auto goes on with it, "
            "or choose another --output_dir, or delete the folder"
        )


def identify(given: dict[str, Any], args: CausalLMTrainingArguments, data: dict, tokenizer, model) -> dict[str, Any]:
    """What makes a run the one it is; whoever goes on with it must agree in all of this."""
    settings = {
        name: value
        for name, value in given.items()
        if name not in MAY_CHANGE and not name.startswith(MAY_CHANGE_PREFIXES)
    }
    return json.loads(
        json.dumps(
            {
                **settings,
                "text (sha256)": data["sha256"],
                "tokenizer (sha256)": hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
                "tokens to train and validate": [data["train_tokens"], data["validation_tokens"]],
                "context_length": data["context_length"],
                "parameters": model.num_parameters(),
                "max_steps": args.max_steps,
                "windows per step": args.train_batch_size * args.world_size * args.gradient_accumulation_steps,
                "precision": describe_precision(args),
            },
            default=str,
        )
    )


def find_checkpoint(args: CausalLMTrainingArguments, identity: dict[str, Any]) -> Path | None:
    """The checkpoint to go on from, whole and of this very run; or None to begin."""
    from accelerate.utils import broadcast_object_list

    from modeling_gptlite.training import checkpoints

    found = [None]
    if args.process_index == 0 and args.resume_from_checkpoint in ("auto", "true"):
        found = [checkpoints.newest_whole(Path(args.output_dir), on_damage=lambda sentence: say(args, sentence))]
    elif args.process_index == 0 and args.resume_from_checkpoint != "false":
        found = [Path(args.resume_from_checkpoint)]
        if reason := checkpoints.damage(found[0]):
            raise UserError(f"{found[0]} is no whole checkpoint: {reason}")
    if args.world_size > 1:
        broadcast_object_list(found)
    (checkpoint,) = found
    if checkpoint is not None:
        check_identity(checkpoint, checkpoints.recorded_run(checkpoint), identity)
        say(args, f"going on from {checkpoint.name}")
    return checkpoint


def check_identity(checkpoint: Path, recorded: dict[str, Any], identity: dict[str, Any]) -> None:
    groups = (ModelArguments, DataArguments, CausalLMTrainingArguments)
    defaults = {field.name: field.default for group in groups for field in fields(group)}
    for name in dict.fromkeys([*recorded, *identity]):
        before, now = (run.get(name, defaults.get(name)) for run in (recorded, identity))
        if before != now:
            raise UserError(
                f"{checkpoint} is of another run, with {name} {before}, not {now}; "
                "go back to that, or choose another --output_dir"
            )


def check_report_to(args: CausalLMTrainingArguments) -> None:
    from transformers.integrations import integration_utils

    known, installed = (
        integration_utils.INTEGRATION_TO_CALLBACK,
        integration_utils.get_available_reporting_integrations(),
    )
    for name in args.report_to:
        if name not in known:
            raise UserError(f"--report_to {name}: unknown; allowed are none, all, {', '.join(sorted(known))}")
        if name not in installed:
            raise UserError(f"--report_to {name}: it is not installed; pip install {name}")


def load_model_and_tokenizer(model_args: ModelArguments, source):
    """The saved model with its tokenizer, or a new one for a tokenizer made from the text."""
    from modeling_gptlite import GPTLiteForCausalLM
    from modeling_gptlite.training.examples import ExampleSource

    model = None
    if model_args.model_name_or_path:
        model, tokenizer = load_saved(model_args)
    else:
        tokenizer = make_tokenizer(model_args, source)
    if isinstance(source, ExampleSource):
        source.share_template(tokenizer)
    if model is None:
        special_tokens = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        return GPTLiteForCausalLM(build_config(model_args, vocab_size=len(tokenizer), **special_tokens)), tokenizer
    if model_args.tokenizer is None and model_args.lora_r is None:  # LoRA leaves the embeddings alone
        grow_vocabulary(model, tokenizer, source)
    return model, tokenizer


def load_saved(model_args: ModelArguments):
    name, tokenizer_name = model_args.model_name_or_path, model_args.tokenizer
    if tokenizer_name in TOKENIZERS:
        raise UserError(f"a saved model keeps its vocabulary; --tokenizer {tokenizer_name} makes a new one")
    model, tokenizer = load_pretrained(name, tokenizer_name, dtype="float32")
    if getattr(model, "_hf_peft_config_loaded", False):
        raise UserError(f"{name} is a LoRA adapter; merge it into its model, and train on that")
    embeddings = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > embeddings:
        raise UserError(f"the tokenizer has {len(tokenizer)} tokens, the model only {embeddings}")
    # Both as the Trainer and the loss would have it, without their warnings.
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.loss_type = model.loss_type or "ForCausalLM"
    return model, tokenizer


def make_tokenizer(model_args: ModelArguments, source):
    """One made from the text, or a saved one."""
    import tokenization

    name = model_args.tokenizer or "char"
    try:
        if name == "char":
            return tokenization.build_char_tokenizer(source.pieces())
        if name == "bpe":
            return tokenization.build_bpe_tokenizer(source.pieces(), model_args.vocab_size)
        if name == "word":
            return tokenization.build_word_tokenizer(source.pieces(), model_args.vocab_size)
    except ValueError as error:
        raise UserError(error) from error
    return load_tokenizer(name)


def grow_vocabulary(model, tokenizer, source) -> None:
    """Give a character tokenizer what the text needs, and the model rows for it: the mean of those that it has."""
    import transformers

    from tokenization import add_characters, describe_characters

    new = add_characters(tokenizer, source.pieces())
    if not new:
        return
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # it explains at length how it initialises
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))
    transformers.logging.set_verbosity(verbosity)
    print(f"added to the vocabulary, now {len(tokenizer)} tokens: {describe_characters(new)}", flush=True)


def check_lora(model_args: ModelArguments, args: CausalLMTrainingArguments) -> None:
    """Refuse what LoRA cannot do, before anything is loaded."""
    from transformers.utils import is_peft_available

    if model_args.lora_r is None:
        if model_args.lora_alpha is not None or model_args.lora_dropout:
            raise UserError("--lora_alpha and --lora_dropout need --lora_r")
        return
    rules = [
        ("lora_r", model_args.lora_r >= 1, "at least 1"),
        ("lora_alpha", model_args.lora_alpha is None or model_args.lora_alpha >= 1, "at least 1"),
        ("lora_dropout", 0 <= model_args.lora_dropout < 1, "0 or more and below 1"),
    ]
    for name, is_right, allowed in rules:
        if not is_right:
            raise UserError(f"--{name} must be {allowed}, got {getattr(model_args, name)}")
    if model_args.model_name_or_path is None:
        raise UserError("--lora_r needs --model_name_or_path: LoRA fine-tunes a model that is trained")
    if args.push_to_hub and os.path.isdir(model_args.model_name_or_path):
        raise UserError("an adapter is published with the Hub name of its model; publish the model first")
    if not is_peft_available():
        raise UserError('LoRA needs PEFT: pip install "gptlite[finetune]"')


def build_config(model_args: ModelArguments, **fields):
    """The preset with `fields`, and over them what the user overrides."""
    from modeling_gptlite import GPTLiteConfig

    try:
        overrides = json.loads(model_args.model_overrides or "{}")
        if not isinstance(overrides, dict):
            raise UserError(f"--model_overrides must be a JSON object of fields, got {model_args.model_overrides}")
        return GPTLiteConfig.from_preset(model_args.preset, **{**fields, **overrides})
    except json.JSONDecodeError as error:
        raise UserError(f"--model_overrides is not JSON: {error}") from error
    except LOADING_ERRORS as error:
        raise UserError(reason(error)) from error


def make_windows(source, tokenizer, model, data_args: DataArguments, args: CausalLMTrainingArguments):
    """The run's training windows, all of the validation split's, and what the reports say of the text."""
    from modeling_gptlite.training.data import EvaluationWindows, RandomWindows
    from modeling_gptlite.training.examples import EvaluationExamples, ExampleSource, ShuffledExamples

    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    context = longest if data_args.context_length is None else data_args.context_length
    if context is None:
        raise UserError(f"a {type(model).__name__} states no context; give --context_length")
    if context < 1 or (longest and context > longest):
        raise UserError(f"--context_length must lie between 1 and the model's context of {longest}, got {context}")
    if args.short_context and context % args.short_context:
        raise UserError(f"--short_context must divide the context of {context}, got {args.short_context}")
    batch = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
    prompt = "\n"
    if isinstance(source, ExampleSource):
        if args.short_context:
            raise UserError("--short_context cuts windows of text; examples stay whole")
        train, validation, data = encode_rows(source, tokenizer, context, data_args.validation_fraction)
        samples_per_epoch, prompt = len(train), tokenizer.decode(validation.prompt(0))
    else:
        train, validation, data = encode_splits(source, tokenizer, data_args.validation_fraction)
        samples_per_epoch = len(train) / context
    if args.max_steps <= 0:
        args.max_steps = max(1, round(args.num_train_epochs * samples_per_epoch / batch))
    if data_args.sample_prompt is None:
        data_args.sample_prompt = prompt
    data |= {"context_length": context, **publication(data_args)}
    if isinstance(source, ExampleSource):
        return ShuffledExamples(train, args.max_steps * batch, args.seed), EvaluationExamples(validation), data
    return (
        RandomWindows(train, context, args.max_steps * batch, args.seed),
        EvaluationWindows(validation, context),
        data,
    )


def encode_rows(source, tokenizer, context: int, validation_fraction: float):
    """The examples of the two splits, and what the reports say of them."""
    from modeling_gptlite.training.examples import encode_examples

    train, validation, sha256 = encode_examples(source, tokenizer, context, validation_fraction)
    say_unknown(source.pieces(), tokenizer, len(train.ids) + len(validation.ids))
    if truncated := train.truncated + validation.truncated:
        print(
            f"{truncated:,} examples are longer than the context of {context}: their beginning is cut off", flush=True
        )
    if skipped := train.skipped + validation.skipped:
        print(f"{skipped:,} examples are left out: their completion alone fills the context of {context}", flush=True)
    data = {
        "name": source.name,
        "sha256": sha256,
        "examples": "conversations" if source.conversations else "prompts and completions",
        "train_examples": len(train),
        "validation_examples": len(validation),
        "train_tokens": len(train.ids),
        "validation_tokens": len(validation.ids),
        "validation_targets": validation.targets,
        "validation_characters": validation.characters,
    }
    return train, validation, data


def publication(data_args: DataArguments) -> dict[str, str | None]:
    """What the card says of the text: the data set's name on the Hub, language and licence."""
    from modeling_gptlite.training.data import BUILT_IN_SOURCES

    built_in = not data_args.train_file and (data_args.dataset or "auto") in BUILT_IN_SOURCES
    on_hub = data_args.dataset and not built_in and not os.path.exists(data_args.dataset)
    return {
        "hub_dataset": data_args.dataset if on_hub else None,
        "language": data_args.language or ("en" if built_in else None),
        "license": data_args.license or ("mit" if built_in else None),
    }


def origin(name_or_path: str | None) -> dict[str, str | None]:
    """What a fine-tuned model comes from: its Hub name for the card's metadata, and what to call it."""
    if name_or_path is None:
        return {"base_model": None, "fine_tuned_from": None}
    is_local = os.path.isdir(name_or_path)
    name = Path(name_or_path).resolve().name if is_local else name_or_path
    return {"base_model": None if is_local else name, "fine_tuned_from": name}


def announce(args: CausalLMTrainingArguments, data: dict, model, tokens_per_step: int) -> None:
    """What is going to train on what, in two lines."""
    kind = "examples" if "examples" in data else "tokens"
    texts = f"{data[f'train_{kind}']:,} {kind} to train on, {data[f'validation_{kind}']:,} to validate"
    say(args, f"{data['name']}: {texts}")
    trained, parameters = model.num_parameters(only_trainable=True), model.num_parameters()
    some = f"{trained:,} of " if trained < parameters else ""
    say(args, f"{some}{parameters:,} parameters, {tokens_per_step:,} tokens a step, {describe_speed(args)}")


def describe_precision(args: CausalLMTrainingArguments) -> str:
    return "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32"


def describe_speed(args: CausalLMTrainingArguments) -> str:
    compiled = "compiled" if args.torch_compile else "not compiled"
    return f"{describe_precision(args)}, {compiled}, {args.world_size} x {args.device.type}"


def say(args: CausalLMTrainingArguments, line: str) -> None:
    if args.process_index == 0:
        print(printable(line), flush=True)


# ---- After training ------------------------------------------------------------------------------------------------


def finish(trainer, model, result, data_args, facts: dict, tokens_per_step: int) -> None:
    """Evaluate in full precision, sample, and save the folder that the Hub gets."""
    from modeling_gptlite.training import callbacks, checkpoints, metrics, plots, report

    args, tokenizer = trainer.args, trainer.processing_class
    output_dir = Path(args.output_dir)

    loss = metrics.evaluate_loss(model, trainer.eval_dataset, args.per_device_eval_batch_size)
    model.generation_config = sampling_defaults(tokenizer, stops="examples" in facts["data"])
    sample = ""
    if data_args.sample_length:
        sample = callbacks.write_sample(
            model,
            tokenizer,
            data_args.sample_prompt,
            length=data_args.sample_length,
            seed=args.seed,
            longest=longest_text(model),
            eos_token_id=model.generation_config.eos_token_id,
        )
    step = trainer.state.best_global_step or trainer.state.global_step
    record = make_record(trainer, facts, step, loss, tokens_per_step, result.metrics["train_runtime"], sample)
    with checkpoints.writing("the finished model", output_dir):
        model.save_pretrained(output_dir)
        model.generation_config.save_pretrained(output_dir)  # which an adapter does not save
        tokenizer.save_pretrained(output_dir)
        levels = plots.published_levels(facts["data"])
        plots.plot_run(trainer.state.log_history, tokens_per_step, output_dir.name, output_dir / "loss.png", levels)
        card = report.render_card(CARD_TEMPLATE, record, output_dir.name)
        (output_dir / "README.md").write_text(card, encoding="utf-8")
        report.write_run(output_dir, record)  # last: its presence says that the run is finished
    print(f"\n{shown(sample)}\n")
    say(
        args,
        f"validation loss {loss:.4f} nats per token, {record['results']['bits_per_character']:.3f} bits per character, "
        f"after {record['results']['train_seconds']:.0f} s of training; saved in {output_dir}",
    )


def make_record(
    trainer, facts: dict, step: int, loss: float, tokens_per_step: int, seconds: float, sample: str
) -> dict[str, Any]:
    """What `run.json` holds and the card is filled from; `loss` is that of the weights of step `step`."""
    from modeling_gptlite.training import metrics

    state, data = trainer.state, facts["data"]
    results = {
        "loss": loss,
        "perplexity": metrics.perplexity(loss),
        "bits_per_character": metrics.bits_per_character(
            loss, data["validation_targets"], data["validation_characters"]
        ),
        "best_step": step,
        "steps": state.global_step,
        "train_seconds": seconds,
        "tokens_seen": state.global_step * tokens_per_step,
    }
    return {**facts, "results": results, "sample": sample, "log_history": state.log_history}


def interim_card(trainer, facts: dict, tokens_per_step: int) -> str | None:
    """The card of a checkpoint that is pushed while training goes on."""
    from modeling_gptlite.training.report import render_card

    state = trainer.state
    losses = {row["step"]: row["eval_loss"] for row in state.log_history if "eval_loss" in row}
    if state.global_step not in losses:
        return None
    loss, seconds = losses[state.global_step], time.time() - trainer.began
    record = make_record(trainer, facts, state.global_step, loss, tokens_per_step, seconds, sample="")
    return render_card(CARD_TEMPLATE, record, trainer.hub_model_id)


def publish(trainer) -> None:
    """Push the finished folder with its card, once the last checkpoint's push has ended."""
    from modeling_gptlite.training.report import RUN_FILE, render_card

    folder = Path(trainer.args.output_dir)
    record = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    commit = trainer.push_to_hub("End of training", card=render_card(CARD_TEMPLATE, record, trainer.hub_model_id))
    print(f"pushed to {commit.repo_url}")


def sampling_defaults(tokenizer, stops: bool = False):
    """Sampling that suits a small model, and a stop token where one was learnt: another would end texts at random."""
    from transformers import GenerationConfig

    from modeling_gptlite.training.callbacks import SAMPLING

    return GenerationConfig(
        **SAMPLING,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id if stops else None,
        pad_token_id=tokenizer.pad_token_id,
    )


if __name__ == "__main__":
    run(main)
