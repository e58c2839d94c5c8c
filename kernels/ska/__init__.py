"""Spectral Koopman Attention: the operation, its state and its forms."""

from .attention import ReadOptions, SKAOptions, ska_attention
from .decode import DecodeState, ska_read, ska_step, start_decoding, update_inverse
from .normalize_and_gate import WriteGate, normalize_and_gate, unpack, write_gate
from .state import SKAState

__all__ = [
    "DecodeState",
    "ReadOptions",
    "SKAOptions",
    "SKAState",
    "WriteGate",
    "normalize_and_gate",
    "ska_attention",
    "ska_read",
    "ska_step",
    "start_decoding",
    "unpack",
    "update_inverse",
    "write_gate",
]
