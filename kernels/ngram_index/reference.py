"""Prompt lookup by a rescan of the whole context: the obvious form, which `cpu.py` must equal.

The longest suffix of ``min_n`` to ``max_n`` tokens that also stands earlier in the context is looked for, and what
followed its *first* occurrence is proposed (vLLM 0.29, ``v1/spec_decode/ngram_proposer.py``; the method is Saxena's
prompt lookup decoding, 2023). The occurrence may overlap the suffix, but is not the suffix itself.
"""

from collections.abc import Sequence


def propose(tokens: Sequence[int], num_drafts: int, min_n: int, max_n: int, max_tokens: int) -> list[int]:
    """At most ``num_drafts`` tokens, fewer where the context ends or where ``max_tokens`` (prompt and output) would be
    passed; none without a match."""
    num_tokens = len(tokens)
    num_drafts = min(num_drafts, max_tokens - num_tokens)
    for n in range(max_n, min_n - 1, -1):
        suffix = tokens[num_tokens - n :]
        for start in range(num_tokens - n):
            if tokens[start : start + n] == suffix:
                return list(tokens[start + n : start + n + max(num_drafts, 0)])
    return []
