"""Ready-made tasks: each folder holds its data, reward functions, configuration and expected numbers, yours to copy."""
