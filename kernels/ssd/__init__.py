"""The Mamba-2 state-space dual scan: reference form and fast paths."""
