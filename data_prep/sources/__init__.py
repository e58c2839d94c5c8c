"""Adapters that turn a source into documents."""
