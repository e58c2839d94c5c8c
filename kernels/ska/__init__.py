"""Spectral Koopman Attention: reference form and fast paths."""
