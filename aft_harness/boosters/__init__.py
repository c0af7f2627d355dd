"""What a booster is: injections, the file format, provenance, identity, references. Knows no model and no lm-eval."""
