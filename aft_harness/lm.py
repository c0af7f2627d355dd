"""`aft_harness.lm:SteeredHFLM`, the address under which lm-eval finds the model type."""

from aft_harness.harness.model import SteeredHFLM

__all__ = ["SteeredHFLM"]
