"""Generators of the synthetic recall tasks."""
