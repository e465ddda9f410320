"""Fuzzing of everything that is read from outside; see CONTRIBUTING.md. ``python -m tests.fuzz --help``."""
