"""Secure aggregation: the server learns the sum of the clients' updates, and no single one.

Clients of a round whose packets share one mask (``mask="round"``) send numbers for the same
coordinates, so a server needs nothing but their sum. Each client adds random numbers to its own,
in pairs that cancel in the sum; what a client that drops out leaves behind is removed with the
help of the others, by secret sharing.

Sources: Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning",
CCS 2017, https://eprint.iacr.org/2017/281 (double masking, drop-outs); Bell et al., "Secure
Single-Server Aggregation with (Poly)Logarithmic Overhead" (SecAgg+), CCS 2020,
https://eprint.iacr.org/2020/704 (a few neighbours in place of all pairs).
``docs/privacy.md`` says what this hides and what it does not.
"""

from fl_darex.secagg.settings import SecureAggregation

__all__ = ["SecureAggregation"]
