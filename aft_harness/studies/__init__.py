"""Many trainings and evaluations: layer and strength sweeps, transfer plans, what they cost."""
