"""Paired results: tests, tables, leaderboards, plots. Knows numbers, and not how they came about."""
