import errno
import os
from pathlib import Path

import pytest

from serving.errors import StateError
from serving.tenancy import private_files
from serving.tenancy.private_files import (
    check_private,
    create_private_file,
    ensure_private_folder,
    folder_lock,
    read_private_file,
)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_new_folder_is_closed_to_others(tmp_path: Path) -> None:
    folder = tmp_path / "parent" / "state"
    ensure_private_folder(folder)
    ensure_private_folder(folder)
    assert mode(folder) == 0o700


@pytest.mark.parametrize("open_mode", [0o701, 0o710, 0o750, 0o777])
def test_a_folder_that_others_can_enter_is_refused_with_the_command_that_closes_it(
    tmp_path: Path, open_mode: int
) -> None:
    tmp_path.chmod(open_mode)
    with pytest.raises(StateError, match="chmod 700"):
        ensure_private_folder(tmp_path)


def test_a_file_where_the_folder_should_be_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    with pytest.raises(StateError, match="state"):
        ensure_private_folder(tmp_path / "state")


def test_a_new_file_is_private_and_never_overwritten(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    create_private_file(secret, b"one")
    with pytest.raises(StateError, match="secret"):
        create_private_file(secret, b"two")
    assert mode(secret) == 0o600
    assert read_private_file(secret) == b"one"


def test_a_full_disk_leaves_no_torn_file_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(StateError, match="No space left"):
            create_private_file(tmp_path / "secret", b"one")
    create_private_file(tmp_path / "secret", b"one")
    assert read_private_file(tmp_path / "secret") == b"one"


def test_a_new_file_does_not_follow_a_link_laid_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "secret").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StateError):
        create_private_file(tmp_path / "secret", b"one")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("open_mode", [0o604, 0o640, 0o620])
def test_a_file_that_others_can_reach_is_refused_with_the_command_that_closes_it(
    tmp_path: Path, open_mode: int
) -> None:
    secret = tmp_path / "secret"
    create_private_file(secret, b"one")
    secret.chmod(open_mode)
    with pytest.raises(StateError, match="chmod 600"):
        read_private_file(secret)


def test_a_file_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_private_file(tmp_path / "secret", b"one")
    monkeypatch.setattr(private_files.os, "geteuid", lambda: os.getuid() + 1)  # type: ignore[attr-defined]
    with pytest.raises(StateError, match="belongs to user"):
        check_private(tmp_path / "secret")


def test_root_may_use_another_users_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_private_file(tmp_path / "secret", b"one")
    monkeypatch.setattr(private_files.os, "geteuid", lambda: 0)  # type: ignore[attr-defined]
    check_private(tmp_path / "secret")


def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="absent"):
        read_private_file(tmp_path / "absent")
    with pytest.raises(StateError, match="absent"), folder_lock(tmp_path / "absent"):
        pass


def test_the_folder_lock_can_be_taken_again_after_a_failure_inside_it(tmp_path: Path) -> None:
    with pytest.raises(StateError), folder_lock(tmp_path):
        raise StateError("inside")
    with folder_lock(tmp_path):
        pass
