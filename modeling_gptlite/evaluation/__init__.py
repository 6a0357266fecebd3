"""Evaluation of saved models: statistics of predictions and of generated text, and the comparison that uses them."""
