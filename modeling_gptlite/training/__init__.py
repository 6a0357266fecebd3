"""Training of any causal language model in transformers: arguments, optimizers, the Trainer, checkpoints, metrics."""
