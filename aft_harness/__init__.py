"""Activation Fine-Tuning with lm-eval: train, evaluate and share small steering vectors of frozen language models."""

__version__ = "0.1.0"
