"""Mixers, feed-forwards, the Echo stack, its baselines and their accounting."""
