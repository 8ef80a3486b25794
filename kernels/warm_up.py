"""What an engine calls when it loads, so that no request waits for a compiler."""

import time

import numpy as np
import torch

from kernels.compiled import forbid_compiling
from kernels.grammar_mask import cpu as grammar_mask
from kernels.penalties.cpu import Penalties
from kernels.penalties.rules import Rules
from kernels.sample import cpu
from kernels.sample.types import Params


def warm_up() -> float:
    """Loads every CPU kernel from the disk, or compiles it if this machine has not done so; the seconds that it took.

    No kernel is compiled after that: a call with types that the kernels do not know raises TypeError.
    """
    started_s = time.perf_counter()
    logits = torch.zeros(1, 2, dtype=torch.bfloat16)
    zero, whole = torch.zeros(1), torch.zeros(1, dtype=torch.int64)
    penalties = Penalties(1, 2)
    penalties.add_request(0, Rules(), ())
    penalties.append(np.zeros(1, np.int64), np.zeros(1, np.int32))
    edits = penalties.edits(logits, np.zeros(1, np.int64))
    mask = torch.ones(1, 1, dtype=torch.int32)
    grammar_mask.apply(logits, mask)
    cpu.sample(logits, Params(zero, zero.to(torch.int32), zero + 1, zero, whole, whole), mask, edits, num_logprobs=1)
    forbid_compiling()
    return time.perf_counter() - started_s
