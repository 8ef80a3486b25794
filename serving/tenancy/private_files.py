"""Files that only their owner may read. Everything here raises StateError with the path and what to do."""

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serving.errors import StateError


def ensure_private_folder(path: Path) -> None:
    """Create ``path`` with mode 0700, or see that it is a folder of ours that nobody else can enter."""
    with _translated(path):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_private(path)


def check_private(path: Path) -> None:
    """Refuse a file or folder that belongs to someone else or that group or others can reach."""
    with _translated(path):
        status = path.stat()
    # Root may look after another user's state folder; SQLite then keeps that user as the owner of its own files.
    if os.geteuid() not in (0, status.st_uid):
        raise StateError(
            f"{path} belongs to user id {status.st_uid}, not to you; run as that user, or change its owner."
        )
    if status.st_mode & 0o077:
        mode = "700" if stat.S_ISDIR(status.st_mode) else "600"
        found = f"{stat.S_IMODE(status.st_mode):03o}"
        raise StateError(f"{path} is open to other users (mode {found}); close it with: chmod {mode} '{path}'")


def create_private_file(path: Path, content: bytes) -> None:
    """Write a new file with mode 0600 and make it durable, or leave none. StateError when it exists, or the disk is
    full."""
    with _translated(path):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            with os.fdopen(file, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(file)
        except OSError:
            path.unlink()
            raise


def read_private_file(path: Path) -> bytes:
    """Read a file after checking that it is private."""
    check_private(path)
    with _translated(path):
        return path.read_bytes()


@contextmanager
def folder_lock(path: Path) -> Iterator[None]:
    """Hold the folder's lock against other processes (and threads) that take it too; a crash releases it."""
    with _translated(path):
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with _translated(path):
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StateError(f"{path}: {error.strerror}. Check that the folder exists and that you may use it.") from error
