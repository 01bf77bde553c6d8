"""Damaged files, and whether each is read or refused in one line: see `scripts/mutation_test.py`."""
