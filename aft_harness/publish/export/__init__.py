"""A booster as another tool reads it: exact, or refused with the reason. One module a target."""
