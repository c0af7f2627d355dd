"""Adapters, of which there are none."""
