"""Boosters for others: as other tools read them."""
