"""What must hold on a device before anything is timed there: the oracle's answers, the same bits in any batch."""

from collections.abc import Callable, Iterator
from dataclasses import fields

import torch

from kernels.logprobs import reference as logprobs_reference
from kernels.logprobs.op import logprobs
from kernels.penalties import reference as penalties_reference
from kernels.penalties.op import GpuPenalties
from kernels.penalties.rules import Rules
from kernels.prepare_decode import reference as prepare_decode_reference
from kernels.prepare_decode.op import prepare_decode
from kernels.prepare_decode.types import NO_SLOT, Requests, Step
from kernels.sample import reference
from kernels.sample.op import sample
from kernels.sample.types import Edits, Params

MARGIN = 1e-6
"""As a share of the mass: what float32 weights may be off by."""
# temperature, top-k, top-p, min-p
_SETTINGS = (
    (0.0, 0, 1.0, 0.0),
    (0.8, 0, 1.0, 0.0),
    (0.8, 50, 1.0, 0.0),
    (1.0, 1500, 0.95, 0.0),
    (0.8, 0, 0.9, 0.0),
    (1.0, 0, 0.999, 0.0),
    (0.8, 50, 0.9, 0.0),
    (1.0, 0, 1.0, 0.05),
    (1.0, 20, 0.8, 1e-4),
)


def run_checks(device: str, *, tiny: bool) -> list[str]:
    """What failed, in words."""
    with torch.inference_mode():
        return [failure for check in _checks(device, tiny=tiny) for failure in check()]


def _checks(device: str, *, tiny: bool) -> Iterator[Callable[[], Iterator[str]]]:
    for num_tokens in (1003,) if tiny else (1003, 32_000, 128_256, 151_936, 262_144):
        for dtype in (torch.bfloat16,) if tiny else (torch.bfloat16, torch.float16, torch.float32):
            for scale in (3.0,) if tiny else (3.0, 0.3):
                yield lambda v=num_tokens, d=dtype, s=scale: _oracle(device, v, d, s)  # type: ignore[misc]
        yield lambda v=num_tokens: _hostile(device, v)  # type: ignore[misc]
        yield lambda v=num_tokens: _covered(device, v)  # type: ignore[misc]
        yield lambda v=num_tokens: _logprobs(device, v)  # type: ignore[misc]
    yield lambda: _batches(device, 1003 if tiny else 128_256, 9 if tiny else 512)
    yield lambda: _penalties(device)
    yield lambda: _step(device)


def _params(num_rows: int, device: str) -> Params:
    rows = [_SETTINGS[n % len(_SETTINGS)] for n in range(num_rows)]
    temperature, top_k, top_p, min_p = zip(*rows, strict=True)
    return Params(
        temperature=torch.tensor(temperature, dtype=torch.float32, device=device),
        top_k=torch.tensor(top_k, dtype=torch.int32, device=device),
        top_p=torch.tensor(top_p, dtype=torch.float32, device=device),
        min_p=torch.tensor(min_p, dtype=torch.float32, device=device),
        seed=torch.arange(num_rows, device=device) * 0x123456789AB - 3,
        position=torch.arange(num_rows, device=device) * 2**31,
    )


def _rows(num_rows: int, num_tokens: int, dtype: torch.dtype, scale: float, device: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(num_tokens)
    return (torch.randn(num_rows, num_tokens, generator=generator) * scale).to(dtype).to(device)


def _differences(
    name: str, logits: torch.Tensor, mask: torch.Tensor | None = None, edits: Edits | None = None
) -> Iterator[str]:
    how = _params(len(logits), str(logits.device))
    out = sample(logits, how, mask, edits)
    found = zip(out.token.tolist(), out.num_kept.tolist(), out.status.tolist(), strict=True)
    wanted = reference.verdicts(logits, how, mask, edits)
    for n, ((token, num_kept, status), verdict) in enumerate(zip(found, wanted, strict=True)):
        is_near = min(verdict.cut_margin, verdict.draw_margin) < MARGIN
        right = (verdict.token, len(verdict.kept), verdict.status)
        if status != verdict.status or (not is_near and (token, num_kept) != right[:2]):
            yield f"{name}, row {n} {_SETTINGS[n % len(_SETTINGS)]}: {(token, num_kept, status)}, not {right}"


def _oracle(device: str, num_tokens: int, dtype: torch.dtype, scale: float) -> Iterator[str]:
    logits = _rows(len(_SETTINGS), num_tokens, dtype, scale, device)
    yield from _differences(f"sample, V {num_tokens}, {dtype}, scale {scale}", logits)


def _hostile(device: str, num_tokens: int) -> Iterator[str]:
    logits = _rows(2 * len(_SETTINGS), num_tokens, torch.bfloat16, 3.0, device)
    logits[::5, ::2] = float("nan")
    logits[1::5] = float("-inf")
    logits[2::5, 700:703] = float("inf")
    logits[3::5] = 1.25
    yield from _differences(f"hostile rows, V {num_tokens}", logits)


def _covered(device: str, num_tokens: int) -> Iterator[str]:
    num_rows = len(_SETTINGS)
    logits = _rows(num_rows, num_tokens, torch.bfloat16, 3.0, device)
    generator = torch.Generator().manual_seed(2)
    words = torch.randint(-(2**31), 2**31, (num_rows, -(-num_tokens // 32)), generator=generator)
    words[1::3] = 0
    words[1::3, 11] = 1 << 9
    words[2::3, words.shape[1] // 3 :] = 0
    mask = words.to(torch.int32).to(device)
    sets = [torch.randperm(num_tokens, generator=generator)[: 37 * n].sort().values for n in range(num_rows)]
    offsets = torch.tensor([0, *(len(chosen) for chosen in sets)]).cumsum(0).to(torch.int32)
    values = torch.randn(int(offsets[-1]), generator=generator) * 4
    edits = Edits(offsets.to(device), torch.cat(sets).to(torch.int32).to(device), values.to(device))
    yield from _differences(f"mask, V {num_tokens}", logits, mask)
    yield from _differences(f"mask and edits, V {num_tokens}", logits, mask, edits)


def _logprobs(device: str, num_tokens: int) -> Iterator[str]:
    logits = _rows(6, num_tokens, torch.bfloat16, 3.0, device)
    logits[1] = 0.5
    tokens = (torch.arange(6, dtype=torch.int32) * 150).to(device)
    got, wanted = logprobs(logits, tokens, 20), logprobs_reference.logprobs(logits, tokens, 20)
    near = torch.allclose(got.logprobs.cpu(), wanted.logprobs, atol=1e-5, rtol=1e-6)
    if not (torch.equal(got.ids.cpu(), wanted.ids) and torch.equal(got.rank.cpu(), wanted.rank) and near):
        yield f"logprobs, V {num_tokens}"


def _batches(device: str, num_tokens: int, num_rows: int) -> Iterator[str]:
    logits = _rows(num_rows, num_tokens, torch.bfloat16, 1.0, device)
    how = _params(num_rows, device)
    whole = sample(logits, how, num_logprobs=5)
    assert whole.logprobs is not None
    for some in (slice(0, 1), slice(1, 8), slice(3, num_rows)):
        part = sample(logits[some], Params(*(getattr(how, field.name)[some] for field in fields(how))), num_logprobs=5)
        assert part.logprobs is not None
        same = torch.equal(part.token, whole.token[some]) and torch.equal(part.num_kept, whole.num_kept[some])
        if not (same and torch.equal(part.logprobs.logprobs, whole.logprobs.logprobs[some])):
            yield f"rows {some.start} to {some.stop} differ from themselves in a batch of {num_rows}"


def _penalties(device: str) -> Iterator[str]:
    rules = Rules(repetition=1.3, frequency=0.4, presence=0.2, bias={9: 3.0})
    prompt, output = list(range(0, 4000, 3)), list(range(0, 4000, 2))
    penalties = GpuPenalties(3, 5000, 4000, device)
    slot = torch.tensor([2], dtype=torch.int32, device=device)
    penalties.add_request(2, rules, prompt, output)
    for token in (1, 4999, 1, 2001):
        penalties.append(slot, torch.tensor([token], dtype=torch.int32, device=device))
    logits = _rows(1, 5000, torch.bfloat16, 3.0, device)
    got = torch.from_numpy(reference.edited(logits, None, penalties.edits(logits, slot)))[0].float()
    wanted = penalties_reference.penalised(logits[0].cpu(), rules, prompt, [*output, 1, 4999, 1, 2001])
    if not torch.allclose(got, wanted, rtol=1e-5, atol=1e-5):
        yield "penalties"


def _step(device: str) -> Iterator[str]:
    generator = torch.Generator().manual_seed(3)

    def ints(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(0, high, shape, generator=generator, dtype=torch.int32).to(device)

    slots = torch.tensor([3, 0, NO_SLOT, 7], dtype=torch.int32, device=device)
    requests = Requests(slots, ints(1000, 8), ints(16 * 40, 8), ints(2**31 - 1, 8, 40))
    got, wanted = Step.empty(4, 40, device), Step.empty(4, 40, device)
    prepare_decode(requests, 16, got)
    prepare_decode_reference.prepare_decode(requests, 16, wanted)
    if not all(torch.equal(getattr(got, field.name), getattr(wanted, field.name)) for field in fields(Step)):
        yield "prepare_decode"
