"""Adapters, of which there are none."""


class LoRARequest:
    """What a request for one would be."""
