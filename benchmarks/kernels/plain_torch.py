"""What a careful user of torch would write: the same answers in distribution, with sorts and full passes."""

import torch

from kernels.sample.types import Edits, Params


def sample(
    logits: torch.Tensor,
    params: Params,
    mask: torch.Tensor | None = None,
    edits: Edits | None = None,
    num_logprobs: int | None = None,
) -> tuple[torch.Tensor, object]:
    """Tokens int64 [N], and logprobs, for logits [N, V]; all rows have the modes of the first."""
    x = logits.float()
    if edits is not None:
        rows = torch.repeat_interleave(torch.arange(len(x)), edits.offsets.diff())
        x[rows, edits.ids.long()] = edits.logits
    if mask is not None:
        allowed = (mask.unsqueeze(-1) >> torch.arange(32, dtype=torch.int32)) & 1
        x.masked_fill_(allowed.view(len(x), -1)[:, : x.shape[1]] == 0, float("-inf"))
    token = _draw(x, params)
    return token, None if num_logprobs is None else _logprobs(logits, token, num_logprobs)


def _draw(x: torch.Tensor, params: Params) -> torch.Tensor:
    if params.temperature[0] == 0:
        return x.argmax(1)
    x /= params.temperature[:, None]
    ids = None
    if params.top_k[0] > 0:
        x, ids = x.topk(int(params.top_k.max()), dim=1)
    elif params.top_p[0] < 1:
        x, ids = x.sort(dim=1, descending=True)
    p = x.softmax(1)
    if params.min_p[0] > 0:
        p.masked_fill_(p < p.amax(1, keepdim=True) * params.min_p[:, None], 0.0)
    mass = p.cumsum(1)
    if params.top_p[0] < 1:
        p.masked_fill_(mass - p >= params.top_p[:, None] * mass[:, -1:], 0.0)
        mass = p.cumsum(1)
    at = torch.searchsorted(mass, torch.rand(len(x), 1) * mass[:, -1:], right=True).clamp_(max=x.shape[1] - 1)
    return (at if ids is None else ids.gather(1, at)).squeeze(1)


def _logprobs(logits: torch.Tensor, token: torch.Tensor, num_logprobs: int) -> object:
    logprobs = logits.float().log_softmax(1)
    own = logprobs.gather(1, token[:, None])
    return logprobs.topk(num_logprobs, dim=1), own, (logprobs >= own).sum(1)
