"""A model, steered and scored: decoder layers, hooks, packed rows, loglikelihoods. Knows no lm-eval."""
