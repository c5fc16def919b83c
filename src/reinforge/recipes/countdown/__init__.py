"""Countdown with a visible search: a tiny model that gives up learns to keep searching."""
