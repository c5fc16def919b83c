"""Turns completions into grades."""
