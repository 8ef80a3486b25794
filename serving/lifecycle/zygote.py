"""A process that has imported an engine once, and forks whoever asks for one: seconds of imports become milliseconds.

    replica ── its job and four descriptors, over a Unix socket ──▸ zygote ── fork ──▸ child: runs the job's target

There is at most one per node and server; whoever needs it and finds none starts it, and it ends with its owner. It only
imports: it must stay a process of one thread, or what it forks would inherit locks that nobody holds any more.

A child is not its requester's child, so the kernel is asked otherwise to end it with the requester: the child's end of
the ``life`` socket pair is set to send it SIGKILL when the other end closes, which a stopped process obeys too. What
the zygote has forked lives on when the zygote dies.

Without a zygote the same job runs in a fresh process, which imports for itself (``run_fresh``).

python -m serving.lifecycle.zygote serve SOCKET OWNER_PID MODULE[:FUNCTION]…
python -m serving.lifecycle.zygote run DESCRIPTOR
"""

import fcntl
import gc
import importlib
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import orjson

from serving.lifecycle.processes import name_process, signal_when_parent_ends

SOCKET = "zygote.sock"
"""Its name in the runtime folder."""
START_GRACE_S = 5.0
"""How long a zygote may take to listen; it imports only then."""
MAX_WAITING = 64
CLIENT_PATIENCE_S = 5.0
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "SPT_NOENV": "1"}
"""The zygote's: a pool of threads does not survive a fork (what it forks sets its number of threads itself), and a
process's title must not overwrite the environment by which `processes_of` finds it.
"""
F_SETSIG = 10  # linux/fcntl.h; Python has no name for it
_LENGTH = struct.Struct("!I")
_NUM_DESCRIPTORS = 4


@dataclass(frozen=True, slots=True)
class Job:
    """What a child is to be.

    ``target`` is ``module:function``, called with ``payload`` and the child's end of the control socket; ``name`` is
    what ``ps`` and ``top`` show; ``environment`` and ``path`` become its own.
    """

    target: str
    payload: bytes
    name: str
    environment: Mapping[str, str]
    path: Sequence[str]

    @classmethod
    def here(cls, target: str, payload: bytes, name: str) -> "Job":
        """To be done as this process would do it."""
        return cls(target, payload, name, dict(os.environ), sys.path)

    def encode(self) -> bytes:
        head = {"target": self.target, "name": self.name, "environment": self.environment, "path": self.path}
        return orjson.dumps(head) + b"\n" + self.payload

    @classmethod
    def decode(cls, data: bytes) -> "Job":
        head, _, payload = data.partition(b"\n")
        return cls(payload=payload, **orjson.loads(head))


@dataclass(frozen=True, slots=True)
class Child:
    """The requester's hold on a child. Its first line on ``control`` is its process id, the end of ``control`` its own.
    ``process`` is None for one that a zygote has forked.
    """

    control: socket.socket
    life: socket.socket
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def has_ended(self) -> bool:
        try:
            return not self.control.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except ConnectionError:
            return True

    def close(self) -> None:
        """Let go of the child: if it still runs, the kernel kills it. Idempotent."""
        self.life.close()
        self.control.close()
        if self.process is not None:
            self.process.wait()


class ZygoteError(Exception):
    """There is no zygote, and none could be started."""


# ------------------------------------------------------------------------------------------------------- the requester


def start(socket_path: Path, owner_pid: int, modules: Sequence[str]) -> "subprocess.Popen[bytes]":
    """Start a zygote that imports ``modules`` and calls the functions that some name after a colon. It ends at once
    where another one serves the path already.

    It stays in our session, beyond Ctrl-C in a process group of its own. Linux shares the CPUs between sessions first
    (`sched_autogroup`), and in 6.18 two busy engines in another session kept a server's other processes, the gateways
    among them, from running for seconds.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "serving.lifecycle.zygote", "serve", str(socket_path), str(owner_pid), *modules],
        env={**os.environ, **ENVIRONMENT}, stdin=subprocess.DEVNULL, stdout=2, process_group=0,
    )  # fmt: skip


def fork(socket_path: Path, job: Job) -> Child:
    """Have the zygote at ``socket_path`` fork a child for ``job``; one that still imports does so afterwards.

    Raises ZygoteError. A zygote that dies before it has forked shows as a ``control`` that ends without a word.
    """
    with closing(socket.socket(socket.AF_UNIX)) as connection:
        connection.settimeout(CLIENT_PATIENCE_S)
        try:
            connection.connect(str(socket_path))
            return Child(*_hand_over(connection, job))
        except OSError as error:
            raise ZygoteError(f"{socket_path}: {error.strerror or error}") from error


def run_fresh(job: Job) -> Child:
    """Do ``job`` in a process of its own, which has imported nothing yet."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "serving.lifecycle.zygote", "run", str(theirs.fileno())],
            env={**os.environ, **ENVIRONMENT}, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()],
        )  # fmt: skip
        return Child(*_hand_over(ours, job), process)


def _hand_over(connection: socket.socket, job: Job) -> tuple[socket.socket, socket.socket]:
    """Send ``job`` with the child's ends of two new socket pairs, and our output; returns our ends."""
    control, child_control = socket.socketpair()
    life, child_life = socket.socketpair()
    with child_control, child_life:
        data = job.encode()
        message = _LENGTH.pack(len(data)) + data
        try:
            sent = socket.send_fds(connection, [message], [child_control.fileno(), child_life.fileno(), 1, 2])
            if sent < len(message):  # even sending nothing fails when the zygote has it all and has hung up
                connection.sendall(message[sent:])
        except OSError:
            control.close()
            life.close()
            raise
    return control, life


# ---------------------------------------------------------------------------------------------------------- the zygote


def serve(socket_path: Path, owner_pid: int, modules: Sequence[str]) -> None:
    """Import ``modules``, then fork for whoever asks, until the owner ends."""
    owner = os.pidfd_open(owner_pid)
    lock = os.open(socket_path.with_suffix(".lock"), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    name_process("ballast-zygote")
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        new_path = socket_path.with_suffix(".new")
        new_path.unlink(missing_ok=True)
        listener.bind(str(new_path))
        new_path.chmod(0o600)
        listener.listen(MAX_WAITING)
        new_path.rename(socket_path)  # whoever finds it can connect
        preload(modules)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries the children
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # meant for a group that loses its parent while one is stopped
        while True:
            ready, _, _ = select.select([listener.fileno(), owner], [], [])
            if owner in ready:
                return
            connection, _ = listener.accept()
            with closing(connection):
                try:
                    job, descriptors = receive(connection)
                except (OSError, EOFError):
                    traceback.print_exc()  # the requester's loss, and nobody else's
                    continue
            if os.fork() == 0:
                listener.close()
                for descriptor in (owner, lock):
                    os.close(descriptor)
                run(job, descriptors)
            for descriptor in descriptors:
                os.close(descriptor)


def preload(modules: Sequence[str]) -> None:
    """Import, and see that this has started no thread. Raises SystemExit when it has."""
    for name in modules:
        module, _, function = name.partition(":")
        imported = importlib.import_module(module)
        if function:
            getattr(imported, function)()
    threads = os.listdir("/proc/self/task")
    if len(threads) > 1:
        names = ", ".join(Path(f"/proc/self/task/{thread}/comm").read_text().strip() for thread in threads)
        raise SystemExit(f"the zygote cannot fork: importing {', '.join(modules)} has started threads ({names})")
    gc.collect()
    gc.freeze()  # a child's collector would write to, and so copy, every page it shares with us


def receive(connection: socket.socket) -> tuple[Job, list[int]]:
    """A job and the descriptors that came with it: control, life, stdout, stderr."""
    connection.settimeout(CLIENT_PATIENCE_S)
    data, descriptors, _, _ = socket.recv_fds(connection, 2**16, _NUM_DESCRIPTORS)
    while len(data) < _LENGTH.size or len(data) < _LENGTH.size + _LENGTH.unpack_from(data)[0]:
        more = connection.recv(2**16)
        if not more:
            for descriptor in descriptors:
                os.close(descriptor)
            raise EOFError("the requester has gone")
        data += more
    return Job.decode(data[_LENGTH.size :]), descriptors


def run(job: Job, descriptors: list[int]) -> NoReturn:
    """The child's whole life."""
    code = 1
    try:
        control, life = (socket.socket(fileno=descriptor) for descriptor in descriptors[:2])
        die_with(life)
        for source, target in zip(descriptors[2:], (1, 2), strict=True):
            os.dup2(source, target)
            os.close(source)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        kill_forks_when_we_end()
        name_process(job.name)  # while the environment lies where it was: the package looks for it there, once
        os.environ.clear()
        os.environ.update(job.environment)
        sys.path.extend(entry for entry in job.path if entry not in sys.path)
        control.sendall(f"{os.getpid()}\n".encode())
        module, _, function = job.target.partition(":")
        getattr(importlib.import_module(module), function)(job.payload, control)
        code = 0
    except BaseException:  # noqa: BLE001 - the top of a process
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def die_with(life: socket.socket) -> None:
    """Have the kernel kill this process when the other end of ``life``, over which nothing is ever sent, closes."""
    fcntl.fcntl(life, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(life, F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(life, fcntl.F_SETFL, fcntl.fcntl(life, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([life], [], [], 0)[0]:  # it closed before the call took effect
        os.kill(os.getpid(), signal.SIGKILL)


def kill_forks_when_we_end() -> None:
    """From now on the kernel kills what the main thread forks when this process ends."""
    our_pid = os.getpid()
    is_ours = False

    def note() -> None:
        nonlocal is_ours
        is_ours = os.getpid() == our_pid and threading.current_thread() is threading.main_thread()

    def follow() -> None:
        if is_ours:
            signal_when_parent_ends(signal.SIGKILL, our_pid)

    os.register_at_fork(before=note, after_in_child=follow)


def main(arguments: Sequence[str]) -> None:
    match arguments:
        case ["serve", path, owner_pid, *modules]:
            serve(Path(path), int(owner_pid), modules)
        case ["run", descriptor]:
            with socket.socket(fileno=int(descriptor)) as connection:
                job, descriptors = receive(connection)
            run(job, descriptors)
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
