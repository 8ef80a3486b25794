"""Waking up at a precise moment. Event loops wait in whole milliseconds; the kernel's timers do not (timerfd(2))."""

import asyncio
import ctypes
import os
import time

_libc = ctypes.CDLL(None, use_errno=True)
_TFD_NONBLOCK, _TFD_CLOEXEC, _TFD_TIMER_ABSTIME = 0o4000, 0o2000000, 1
_NS_PER_S = 1_000_000_000


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("it_interval", _Timespec), ("it_value", _Timespec))


class Alarm:
    """One timer of the running event loop; `time.monotonic` is its clock. Python has none before 3.13."""

    def __init__(self) -> None:
        self._fd = _libc.timerfd_create(time.CLOCK_MONOTONIC, _TFD_NONBLOCK | _TFD_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._rung: asyncio.Future[None] | None = None
        asyncio.get_running_loop().add_reader(self._fd, self._ring)

    async def wait_until(self, at_s: float) -> None:
        """Returns at ``at_s``, at once when that is over. One waiter at a time."""
        if at_s <= time.monotonic():
            return
        seconds, rest = divmod(int(at_s * _NS_PER_S), _NS_PER_S)
        when = _Itimerspec(_Timespec(0, 0), _Timespec(seconds, rest))
        self._rung = asyncio.get_running_loop().create_future()
        if _libc.timerfd_settime(self._fd, _TFD_TIMER_ABSTIME, ctypes.byref(when), None) < 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime")
        await self._rung

    def _ring(self) -> None:
        os.read(self._fd, 8)
        if self._rung is not None and not self._rung.done():
            self._rung.set_result(None)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)
