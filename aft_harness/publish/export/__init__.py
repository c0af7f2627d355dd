"""Boosters in the formats of other tools: one module a target, listed in `registry.py`."""
