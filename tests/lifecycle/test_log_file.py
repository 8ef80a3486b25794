from pathlib import Path

from serving.lifecycle.log_file import LogFile


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def test_only_what_is_written_from_now_on_is_read_and_only_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "log"
    append(path, "old\n")
    log = LogFile(path)
    append(path, "one\ntw")
    assert log.new_lines() == ["one"]
    append(path, "o\n")
    assert log.new_lines() == ["two"]
    assert log.new_lines() == []
    log.close()


def test_a_file_that_comes_later_is_read_from_its_beginning(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "log")
    assert log.new_lines() == []
    append(tmp_path / "log", "first\n")
    assert log.new_lines() == ["first"]
    log.close()


def test_rotation_loses_no_line_and_keeps_as_many_old_files_as_told(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = LogFile(path, max_bytes=4, num_old=2)
    seen = []
    for number in range(5):
        append(path, f"line {number}\n")
        seen += log.new_lines()
        log.rotate()
        late = path.with_name("log.1")
        append(late, f"late {number}\n")  # a writer that has not noticed yet
        seen += log.new_lines()
    append(path, "end\n")
    assert [*seen, *log.new_lines()] == [f"{word} {n}" for n in range(5) for word in ("line", "late")] + ["end"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["log", "log.1", "log.2"]
    assert path.with_name("log.1").read_text().startswith("line 4")
    log.close()


def test_a_small_or_missing_file_is_not_rotated(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "log", max_bytes=100)
    log.rotate()
    append(tmp_path / "log", "x\n")
    log.new_lines()
    log.rotate()
    assert [file.name for file in tmp_path.iterdir()] == ["log"]
    log.close()
