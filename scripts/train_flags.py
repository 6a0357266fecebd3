"""The flags that `gptlite train --help` lists, in groups. `--help all` lists all arguments of the Trainer."""

GROUPS: dict[str, tuple[str, ...]] = {
    "model": (
        *("preset", "model_overrides", "model_name_or_path", "tokenizer", "vocab_size"),
        *("teachers", "lora_r", "lora_alpha", "lora_dropout"),
    ),
    "text": (
        *("train_file", "dataset", "dataset_config", "text_column", "documents", "encoding", "streaming"),
        *("validation_fraction", "context_length", "language", "license"),
    ),
    "training": (
        *("max_steps", "num_train_epochs", "minutes", "per_device_train_batch_size", "gradient_accumulation_steps"),
        *("optimizer", "learning_rate", "muon_learning_rate", "weight_decay", "adam_beta1", "adam_beta2"),
        *("lr_scheduler_type", "min_learning_rate_ratio", "warmup_steps", "max_grad_norm"),
        *("short_context", "short_context_fraction", "seed"),
    ),
    "speed and memory": ("precision", "torch_compile", "gradient_checkpointing", "use_cpu"),
    "evaluation and samples": (
        *("eval_strategy", "eval_steps", "eval_on_start", "per_device_eval_batch_size", "logging_steps", "report_to"),
        *("sample_prompt", "sample_length", "eval_sample_length"),
    ),
    "checkpoints and resuming": (
        *("output_dir", "resume_from_checkpoint", "save_strategy", "save_steps", "save_total_limit"),
        *("load_best_model_at_end", "metric_for_best_model"),
    ),
    "sharing": ("push_to_hub", "hub_model_id", "hub_private_repo", "hub_strategy"),
}
# The Trainer's own help for these takes several lines each.
SHORT_HELP = {
    "teachers": "Models to train first and to learn from.",
    "max_steps": "Optimizer steps. Default: as many as --num_train_epochs takes.",
    "num_train_epochs": "Passes over the training text, unless --max_steps is given.",
    "gradient_accumulation_steps": "Batches whose gradients are added up before each optimizer step.",
    "adam_beta1": "AdamW's decay of the first moment.",
    "max_grad_norm": "Gradients are scaled down to this norm; 0 does not.",
    "seed": "Of the initial weights, the training windows, dropout and the samples.",
    "gradient_checkpointing": "Recompute activations in the backward pass: less memory, slower steps.",
    "use_cpu": "Train on the CPU even if there is an accelerator.",
    "eval_on_start": "Evaluate once before training.",
    "report_to": "Where to log as well: tensorboard, wandb, trackio, ...; none or all.",
    "push_to_hub": "Publish each checkpoint's model and the finished one.",
    "hub_model_id": "Repository id, USER/NAME. Default: the name of the output folder.",
    "hub_private_repo": "Make a new repository private.",
    "hub_strategy": "every_save publishes at each checkpoint, end only the finished model.",
}
