"""Training for any causal language model of transformers: data, optimizers, the Trainer, reports and plots."""
