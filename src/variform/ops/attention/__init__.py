"""Attention: one `Call`, several backends that compute it or say why they cannot.

from variform.ops.attention import Call, attention
out = attention(Call(q, k, v, structure=Causal()))
"""

from variform.ops.attention.call import Call
from variform.ops.attention.meter import inside_attention, metering, standing_in
from variform.ops.attention.reference import reference, reference_weights
from variform.ops.attention.select import Backend, Candidate, attention, backends, candidates, register_backend

__all__ = [
    "Backend",
    "Call",
    "Candidate",
    "attention",
    "backends",
    "candidates",
    "inside_attention",
    "metering",
    "reference",
    "reference_weights",
    "register_backend",
    "standing_in",
]
