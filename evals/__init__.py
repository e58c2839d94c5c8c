"""Protocols, suites, scores with intervals, tables and figures."""
