"""Spectral Koopman Attention: the operation, its state and its forms."""

from .attention import ska_attention
from .decode import DecodeState, ska_step, start_decoding, update_inverse
from .state import SKAState
from .weigh import WriteGate, unpack, weigh, write_gate

__all__ = [
    "DecodeState",
    "SKAState",
    "WriteGate",
    "ska_attention",
    "ska_step",
    "start_decoding",
    "unpack",
    "update_inverse",
    "weigh",
    "write_gate",
]
