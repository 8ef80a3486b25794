"""How the CPU kernels are compiled, cached on disk, and spread over threads.

Numba caches a compiled function beside its source (or where ``NUMBA_CACHE_DIR`` says) and takes it for stale when the
file that holds it has changed. Ours are made from several files, so the stamp here is a hash of all of `kernels`.
"""

import functools
import hashlib
import itertools
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numba
import torch

_Function = TypeVar("_Function", bound=Callable[..., Any])


_entries: list[Any] = []


def forbid_compiling() -> None:
    """From here on an `entry` that was called before, called with types that it was not compiled for, raises TypeError
    instead of taking the seconds that a compilation does."""
    for compiled in _entries:
        if compiled.signatures:
            compiled.disable_compile()


def inlined(function: _Function) -> _Function:
    """A part of an `entry`: compiled into it, and not by itself."""
    compiled: _Function = numba.njit(nogil=True, error_model="numpy")(function)
    return compiled


def entry(function: _Function) -> _Function:
    """What Python calls: compiled at its first call on a machine, then read from the disk. Releases the GIL."""
    compiled = numba.njit(nogil=True, error_model="numpy", cache=True)(function)
    compiled._cache._cache_file._source_stamp = _sources_hash()
    _entries.append(compiled)
    return compiled


@functools.cache
def _sources_hash() -> str:
    folder = Path(__file__).parent
    sources = sorted(path for path in folder.rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()


_MIN_SHARE = 2**18
"""Logits that are worth a thread of their own: a hand-over costs about as much as reading so many."""

_pools: dict[int, ThreadPoolExecutor] = {}
_pools_lock = threading.Lock()


def over_rows(num_rows: int, row_size: int, work: Callable[[int, int], None]) -> None:
    """Calls ``work(first, last)`` on shares of the rows, on as many threads as torch uses.

    Threads are Python's own (the kernels release the GIL): numba's OpenMP layer dies in a forked process, and its
    workqueue when two threads call it at once. The pool is made when it is first needed, in the process that needs it.
    """
    num_shares = max(1, min(torch.get_num_threads(), num_rows, num_rows * row_size // _MIN_SHARE))
    if num_shares == 1:
        work(0, num_rows)
        return
    bounds = [num_rows * share // num_shares for share in range(num_shares + 1)]
    shares = list(itertools.pairwise(bounds))
    pool = _pool(num_shares - 1)
    others: list[Future[None]] = [pool.submit(work, first, last) for first, last in shares[1:]]
    work(*shares[0])
    for other in others:
        other.result()


def _pool(num_threads: int) -> ThreadPoolExecutor:
    with _pools_lock:
        if num_threads not in _pools:
            _pools[num_threads] = ThreadPoolExecutor(num_threads, thread_name_prefix="kernels")
        return _pools[num_threads]


os.register_at_fork(after_in_child=_pools.clear)
