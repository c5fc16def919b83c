"""From examples to graded groups."""
