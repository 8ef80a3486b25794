from pathlib import Path

import pytest

from serving.lifecycle.cause import MAX_CAUSE_CHARS, root_cause, worker_logs

RAY = """The deployment failed to start 1 times in a row. Error:
ray::ServeReplica:ballast:demo.cpu.initialize_and_get_metadata() (pid=4711, ip=127.0.0.1, actor_id=ab)
  File "server.py", line 1, in __init__
    return Script(**args)
TypeError: Script.__init__() got an unexpected keyword argument 'nonsense'"""
VLLM = """(EngineCore pid=90) ERROR 11-22 11:54:29 [core.py:1234] EngineCore failed to start.
(EngineCore pid=90) ERROR 11-22 11:54:29 [core.py:1234] Traceback (most recent call last):
(EngineCore pid=90) ERROR 11-22 11:54:29 [core.py:1234]   File "x.py", line 1, in f
(EngineCore pid=90) ERROR 11-22 11:54:29 [core.py:1234] ValueError: To serve at least one request, a KV cache is needed
Traceback (most recent call last):
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': 1}"""


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (RAY, "TypeError: Script.__init__() got an unexpected keyword argument 'nonsense'"),
        (VLLM, "ValueError: To serve at least one request, a KV cache is needed"),
        (VLLM.splitlines()[-1], VLLM.splitlines()[-1]),
        ("torch.OutOfMemoryError: CUDA out of memory.", "torch.OutOfMemoryError: CUDA out of memory."),
        ("KeyError\n", "KeyError"),
        ("all is well\nError: not a class of ours", None),
        ("", None),
    ],
)
def test_the_cause_is_the_last_error_that_says_something_itself(text: str, cause: str | None) -> None:
    assert root_cause(text) == cause


def test_a_cause_is_cut_to_what_a_person_reads() -> None:
    assert root_cause("ValueError: " + "x" * 10_000) == "ValueError: " + "x" * (MAX_CAUSE_CHARS - len("ValueError: "))


def test_the_output_of_the_processes_that_a_message_names_is_found(tmp_path: Path) -> None:
    for name in ("worker-a-01-4711.out", "worker-a-01-4711.err", "worker-b-01-47110.err", "raylet.4711.out"):
        (tmp_path / name).touch()
    assert [path.name for path in worker_logs(tmp_path, RAY)] == ["worker-a-01-4711.err", "worker-a-01-4711.out"]
    assert worker_logs(tmp_path, "nobody is named") == []
