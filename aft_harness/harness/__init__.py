"""Everything that touches lm-eval: the model type, its guards, tasks, examples, evaluation."""
