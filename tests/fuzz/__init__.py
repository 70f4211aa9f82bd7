"""Fuzzing of everything that reads what strangers give: ``python -m tests.fuzz``."""
