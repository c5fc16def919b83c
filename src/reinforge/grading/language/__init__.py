"""The grader language: OpenAI's JSON and the built-in types, its templates and formulas, and what judges by them."""
