"""Making boosters: recipes, objectives, gradient descent, and extraction from activations."""
