"""Work on a client's data that may take for ever or crash, done in processes that the kernel kills.

    replica  ── control: one end of a socket pair per job ──▸  server  ── fork ──▸  child: one job, one answer, gone

The server has imported what the work needs (it is forked from the node's zygote, where there is one), and forks a child
per job, which costs milliseconds. It runs at low priority and ends with the replica. A child may spend ``cpu_s``
seconds of processor time and ``MEMORY_BYTES`` more than the server has. Processor time, not time on a clock: how long
others keep the machine busy does not change what is refused.
"""

import asyncio
import contextlib
import gc
import importlib
import logging
import os
import resource
import signal
import socket
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import orjson

from serving.lifecycle import zygote
from serving.lifecycle.processes import signal_when_parent_ends
from serving.lifecycle.zygote import Child, Job, ZygoteError

logger = logging.getLogger("ballast.replica")

Work = Callable[[bytes], bytes]
"""What a child does with a job."""

NICENESS = 10
#: At most this many children at once; more jobs wait for their turn.
MAX_CHILDREN = 4
#: Jobs that wait or run; a further one is refused, not queued.
MAX_JOBS = 64
MEMORY_BYTES = 2**30
#: A child that has not had its processor time after this many times as long is given up: the machine is too busy.
PATIENCE = 10
#: How long a job waits for a server that is still loading.
START_PATIENCE_S = 60.0
END_SEEN_WITHIN_S = 0.2
RESTART_S = 5.0
_LENGTH = struct.Struct("!I")
_READY = b"\0"
_READ_BYTES = 2**16


class Overrun(Exception):
    """The child ended without an answer: too much processor time, too much memory, or it crashed."""


class Unavailable(Exception):
    """The job was not done, and not for its own fault: no server, too many jobs, or a machine that is too busy."""


class _NotTaken(Exception):
    """The server has ended before it took the job: the next one may have it."""


class Sandbox:
    """The replica's end.

    Args:
        target: ``module:function``; called once in the server with ``settings``, it returns the ``Work``.
        cpu_s: seconds of processor time for one job.
        zygote_path: where the zygote listens that forks the server; without one it imports for itself.
    """

    def __init__(self, target: str, settings: bytes, cpu_s: float, zygote_path: Path | None = None) -> None:
        self._target = target
        self._settings = settings
        self._cpu_s = cpu_s
        self._zygote_path = zygote_path
        self._slots = asyncio.Semaphore(MAX_CHILDREN)
        self._num_jobs = 0
        self._is_ready = asyncio.Event()
        self._server: Child | None = None
        self.pid: int | None = None
        """The server's, once it runs."""
        self._keeper: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to load in the background; started anew if it ends."""
        self._keeper = asyncio.create_task(self._keep())

    async def run(self, job: bytes) -> bytes:
        """What the work makes of ``job``. Raises ``Overrun`` and ``Unavailable``."""
        if self._num_jobs >= MAX_JOBS:
            raise Unavailable("too many jobs wait already")
        self._num_jobs += 1
        try:
            while True:
                async with asyncio.timeout(START_PATIENCE_S):
                    await self._is_ready.wait()
                async with self._slots:
                    with contextlib.suppress(_NotTaken):
                        return await self._run(job)
        except TimeoutError:
            raise Unavailable("the server is not ready, or does not answer") from None
        finally:
            self._num_jobs -= 1

    async def stop(self) -> None:
        """End the server and its children. Idempotent."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
            self._keeper = None

    async def _run(self, job: bytes) -> bytes:
        loop = asyncio.get_running_loop()
        server, started_s, patience_s = self._server, loop.time(), PATIENCE * self._cpu_s
        ours, theirs = socket.socketpair()
        with ours:
            ours.setblocking(False)
            with theirs:
                self._hand_over(theirs)
            answer = bytearray()
            async with asyncio.timeout(patience_s + 1):
                with contextlib.suppress(ConnectionError):  # the child was killed while we wrote
                    await loop.sock_sendall(ours, _LENGTH.pack(len(job)) + job)
                    while data := await loop.sock_recv(ours, _READ_BYTES):
                        answer += data
        if len(answer) >= _LENGTH.size and len(answer) == _LENGTH.size + _LENGTH.unpack_from(answer)[0]:
            return bytes(answer[_LENGTH.size :])
        # A killed server takes its children with it, and whose end is seen first is open.
        deadline_s = loop.time() + END_SEEN_WITHIN_S
        while True:
            if server is not self._server or server is None or server.has_ended:
                raise Unavailable("the server ended")
            if loop.time() >= deadline_s:
                break
            await asyncio.sleep(END_SEEN_WITHIN_S / 10)
        if loop.time() - started_s >= patience_s:
            raise Unavailable("the machine is too busy")
        raise Overrun

    def _hand_over(self, connection: socket.socket) -> None:
        try:
            if self._server is None:
                raise _NotTaken
            socket.send_fds(self._server.control, [b"\0"], [connection.fileno()])
        except OSError as error:
            self._is_ready.clear()  # it has ended, and its keeper has not noticed yet
            raise _NotTaken from error

    async def _keep(self) -> None:
        while True:
            try:
                await self._serve_once()
            except OSError as error:  # no memory or no process to be had now
                logger.error("the sandbox failed: %s", error)
            finally:
                self._end()
            logger.error("the sandbox ended; another is started in %g s", RESTART_S)
            await asyncio.sleep(RESTART_S)

    async def _serve_once(self) -> None:
        """From one server's start to its end."""
        loop = asyncio.get_running_loop()
        self._server = self._spawn()
        control = self._server.control
        control.setblocking(False)
        with contextlib.suppress(ConnectionError):
            await loop.sock_sendall(control, _LENGTH.pack(len(self._settings)) + self._settings)
            line = bytearray()
            while data := await loop.sock_recv(control, 1):
                line += data
                if data == b"\n":
                    self.pid = int(line)
                elif data == _READY:
                    self._is_ready.set()

    def _spawn(self) -> Child:
        # It computes on one core, and never on the GPU.
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        payload = orjson.dumps({"target": self._target, "cpu_s": self._cpu_s})
        job = replace(Job.here("serving.engine.sandbox:serve", payload, "ballast-sandbox"), environment=environment)
        if self._zygote_path is not None:
            try:
                return zygote.fork(self._zygote_path, job)
            except ZygoteError as error:
                logger.warning("no zygote forks the sandbox, which imports for itself: %s", error)
        return zygote.run_fresh(job)

    def _end(self) -> None:
        self._is_ready.clear()
        self.pid = None
        if self._server is not None:
            self._server.close()
            self._server = None


# ---------------------------------------------------------------------------------------------------------- the server


def serve(payload: bytes, control: socket.socket) -> None:
    """Load, say so, and fork a child for every job until the replica closes ``control``."""
    os.nice(NICENESS)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the replica, and that ends us
    wanted = orjson.loads(payload)
    cpu_s = wanted["cpu_s"]
    module, _, function = wanted["target"].partition(":")
    work: Work = getattr(importlib.import_module(module), function)(_receive(control))
    gc.collect()
    gc.freeze()  # a child's collector would write to, and so copy, every page it shares with us
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries the children
    control.sendall(_READY)
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not message:
            return
        with socket.socket(fileno=descriptors[0]) as job:
            server_pid = os.getpid()
            if os.fork() == 0:
                control.close()
                _serve_job(job, work, cpu_s, server_pid)


def _serve_job(job: socket.socket, work: Work, cpu_s: float, server_pid: int) -> None:
    """The child's whole life."""
    try:
        signal_when_parent_ends(signal.SIGKILL, server_pid)
        _bound(cpu_s)
        answer = work(_receive(job))
        job.sendall(_LENGTH.pack(len(answer)) + answer)
    finally:
        os._exit(0)


def _bound(cpu_s: float) -> None:
    """Have the kernel end this process when it has had its share."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries quote what they are given, and that is the client's
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    size_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size_bytes + MEMORY_BYTES, size_bytes + MEMORY_BYTES))
    signal.setitimer(signal.ITIMER_PROF, cpu_s)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE * cpu_s)


def _receive(connection: socket.socket) -> bytes:
    (length,) = _LENGTH.unpack(_receive_exactly(connection, _LENGTH.size))
    return _receive_exactly(connection, length)


def _receive_exactly(connection: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        if not (more := connection.recv(count - len(data))):
            raise EOFError("the other end closed")
        data += more
    return bytes(data)
