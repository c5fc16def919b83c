"""Judges: models behind an endpoint that score what code cannot."""
