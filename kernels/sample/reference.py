"""What `sample` must answer, written to be checked by eye: float64, one row at a time, a full sort. Slow.

Per row, of logits x (bfloat16, float16 and float32 are exact in float64), in this order:

    edits       x_i := the edit's logit
    mask        x_i := -inf where the bit of i is not set; a NaN is -inf as well
    temperature w_i := exp((x_i - max x) / T)         below `GREEDY_BELOW`: the lowest id of the maximum, and done
    min-p       keep (x_i - max x) / T >= ln(min_p), which is p_i >= min_p * p_max
    top-k       keep the first k in canonical order: x descending, then id ascending
    top-p       keep the shortest canonical prefix whose mass is >= top_p of what min-p and top-k left
    draw        the first kept id, ascending, whose cumulative w is > u * (sum of the kept w)

``u`` comes from Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), keyed by the
seed and counting positions, so a token depends on its own row, seed and position and on nothing else.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from kernels.logprobs.reference import logprobs
from kernels.sample.types import GREEDY_BELOW, Edits, Params, Sampled, Status

Float64s = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]

_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_WEYL = 0x9E3779B9, 0xBB67AE85
_WORD = 0xFFFFFFFF
_NUM_ROUNDS = 10


def philox(key: tuple[int, int], counter: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """The four 32-bit words of Philox4x32-10; what `triton.language.philox` gives for the same words."""
    k0, k1 = key
    c0, c1, c2, c3 = counter
    for _ in range(_NUM_ROUNDS):
        even, odd = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (odd >> 32) ^ c1 ^ k0, odd & _WORD, (even >> 32) ^ c3 ^ k1, even & _WORD
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return c0, c1, c2, c3


def uniform(seed: int, position: int) -> float:
    """The random number in [0, 1), a multiple of 2**-53, of the token at ``position`` under ``seed`` (both int64)."""
    w0, w1, _, _ = philox((seed & _WORD, seed >> 32 & _WORD), (position & _WORD, position >> 32 & _WORD, 0, 0))
    return float((w0 >> 5) * 2**26 + (w1 >> 6)) * 2.0**-53


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one row must give, and how near it was to giving something else."""

    token: int
    kept: Int64s
    """Ids, ascending."""
    status: Status
    draw_margin: float = np.inf
    """How far u is from a bound between two tokens, as a share of the mass: below the precision of the weights that
    are compared, a neighbouring kept token is as right."""
    cut_margin: float = np.inf
    """How far the masses on the two sides of the top-p cut are from top_p, as a share of the mass, and the logit
    nearest to min-p's bound from it, in units of the temperature, whichever is nearer."""


def judge(x: Float64s, *, temperature: float, top_k: int, top_p: float, min_p: float, u: float) -> Verdict:
    """One row of logits [V], edits and mask already applied."""
    status = Status.NAN if np.isnan(x).any() else Status.OK
    x = np.where(np.isnan(x), -np.inf, x)
    top = x.max()
    if top == -np.inf:
        return Verdict(0, np.empty(0, np.int64), Status.NOTHING)
    if temperature < GREEDY_BELOW:
        token = int(np.argmax(x == top))
        return Verdict(token, np.array([token]), status)

    ids = np.nonzero(x == np.inf if top == np.inf else x > -np.inf)[0]
    ids = ids[np.argsort(-x[ids], kind="stable")]
    exponents = np.zeros(len(ids)) if top == np.inf else (x[ids] - top) / temperature
    weights = np.exp(exponents)

    cut_margin = np.inf
    if min_p > 0:
        above = exponents - np.log(min_p)
        cut_margin = float(np.abs(above).min())
        ids, weights = ids[above >= 0], weights[above >= 0]
    if top_k > 0:
        ids, weights = ids[:top_k], weights[:top_k]
    if top_p < 1:
        mass = np.cumsum(weights)
        missing = mass - top_p * mass[-1]
        cut_margin = min(cut_margin, float(np.abs(missing).min() / mass[-1]))
        num_kept = int(np.argmax(missing >= 0)) + 1
        ids, weights = ids[:num_kept], weights[:num_kept]

    ascending = np.argsort(ids)
    ids, mass = ids[ascending], np.cumsum(weights[ascending])
    target = u * mass[-1]
    token = int(ids[np.argmax(mass > target)])
    draw_margin = float(np.abs(mass[:-1] - target).min() / mass[-1]) if len(ids) > 1 else np.inf
    return Verdict(token, ids, status, draw_margin, cut_margin)


def edited(logits: torch.Tensor, mask: torch.Tensor | None = None, edits: Edits | None = None) -> Float64s:
    """The rows [N, V] after edits and mask."""
    x: Float64s = logits.to(torch.float64).numpy(force=True).copy()
    if edits is not None:
        offsets = edits.offsets.tolist()
        for n, row in enumerate(x):
            here = slice(offsets[n], offsets[n + 1])
            row[edits.ids[here].numpy(force=True)] = edits.logits[here].numpy(force=True)
    if mask is not None:
        x[~unpacked(mask, x.shape[1])] = -np.inf
    return x


def unpacked(mask: torch.Tensor, num_tokens: int) -> npt.NDArray[np.bool_]:
    """A bitmask int32 [N, ceil(V / 32)], token 0 in the lowest bit of word 0, as booleans [N, V]."""
    words = mask.numpy(force=True).astype(np.uint32)
    bits = (words[:, :, None] >> np.arange(32, dtype=np.uint32)) & 1
    bools: npt.NDArray[np.bool_] = bits.reshape(len(words), -1)[:, :num_tokens].astype(bool)
    return bools


def verdicts(
    logits: torch.Tensor, params: Params, mask: torch.Tensor | None = None, edits: Edits | None = None
) -> list[Verdict]:
    """Of every row of logits [N, V]."""
    return [
        judge(
            row,
            temperature=params.temperature[n].item(),
            top_k=params.top_k[n].item(),
            top_p=params.top_p[n].item(),
            min_p=params.min_p[n].item(),
            u=uniform(params.seed[n].item(), params.position[n].item()),
        )
        for n, row in enumerate(edited(logits, mask, edits))
    ]


def sample(
    logits: torch.Tensor,
    params: Params,
    mask: torch.Tensor | None = None,
    edits: Edits | None = None,
    num_logprobs: int | None = None,
) -> Sampled:
    """Logits [N, V], mask int32 [N, ceil(V / 32)]; the answer as tensors on the CPU."""
    found = verdicts(logits, params, mask, edits)
    token = torch.tensor([verdict.token for verdict in found], dtype=torch.int32)
    return Sampled(
        token=token,
        num_kept=torch.tensor([len(verdict.kept) for verdict in found], dtype=torch.int32),
        status=torch.tensor([verdict.status for verdict in found], dtype=torch.uint8),
        logprobs=None if num_logprobs is None else logprobs(logits, token, num_logprobs),
    )
