import os
from dataclasses import replace
from pathlib import Path

import pytest

from serving.errors import StateError
from serving.lifecycle.processes import start_ticks
from serving.lifecycle.record import ServerRecord, record_path, running_server


@pytest.fixture
def record() -> ServerRecord:
    ticks = start_ticks(os.getpid())
    assert ticks is not None
    return ServerRecord(os.getpid(), ticks, "127.0.0.1", 8000, 8001, "/tmp/x", 1.5, "/ballast.yaml")


def test_what_was_written_is_read_back_and_private(tmp_path: Path, record: ServerRecord) -> None:
    record.write(tmp_path)
    assert ServerRecord.read(tmp_path) == record
    assert record_path(tmp_path).stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["server.json"]


def test_a_process_id_that_went_to_another_process_is_no_running_server(tmp_path: Path, record: ServerRecord) -> None:
    record.write(tmp_path)
    assert running_server(tmp_path) == record
    replace(record, start_ticks=record.start_ticks - 1).write(tmp_path)
    assert running_server(tmp_path) is None


def test_no_record_is_no_server(tmp_path: Path) -> None:
    assert running_server(tmp_path) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}', '"x"'])
def test_a_damaged_record_says_what_to_do(tmp_path: Path, text: str) -> None:
    record_path(tmp_path).write_text(text)
    with pytest.raises(StateError, match="damaged"):
        ServerRecord.read(tmp_path)
