"""Sharing boosters: cards, pushing to the hub, pulling from it, and evaluating again what a card claims."""
