"""Runs user code in worker processes: never in ours."""
