"""What a run's rows mean. Pure functions, no torch."""
