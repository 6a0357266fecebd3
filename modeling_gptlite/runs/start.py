"""The former name of `runs/train.py`, which programs may still import."""

from .train import Interrupted, Run, start, start_from


__all__ = ["Interrupted", "Run", "start", "start_from"]
