"""GSM8K: grade-school word problems, answered with visible reasoning."""
