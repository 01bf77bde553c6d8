"""Checkpoint files, local or fetched, opened as plain data: nothing of them is run."""
