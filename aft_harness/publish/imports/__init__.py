"""Steering vectors that other tools wrote, as boosters: one module a format."""
