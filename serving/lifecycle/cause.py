"""Why a replica did not start, in one line, from the long texts that Ray and vLLM leave behind. Pure, but for
``newest_log``.
"""

import re
from pathlib import Path

#: ``SomeError: message``, after the prefixes of vLLM's processes and log lines.
_ERROR = re.compile(
    r"^(?:\([^()]*\) ?)?(?:(?:ERROR|CRITICAL) [^\]]*\] ?)?"
    r"(?P<kind>(?:\w+\.)*[A-Z]\w*(?:Error|Exception|Failure|Interrupt))(?:: (?P<message>.*\S))?\s*$"
)
#: Errors that only say that there was another one.
_EMPTY = (
    "See root cause above",
    "Engine core initialization failed",
    "failed due to the following",
    "WorkerProc initialization failed",
)
_WRAPPER = re.compile(
    r"^(?:ray\.exceptions\.)?(?:RayTaskError|RayActorError|ActorDiedError|RuntimeError: The deployment failed)"
)
MAX_CAUSE_CHARS = 500


def root_cause(text: str) -> str | None:
    """The last error in ``text`` that says something itself; None when there is none."""
    found: str | None = None
    for line in text.splitlines():
        match = _ERROR.match(line)
        if match is None or _WRAPPER.match(match["kind"]):
            continue
        message = match["message"] or ""
        if any(phrase in message for phrase in _EMPTY):
            if found is None:
                found = f"{match['kind']}: {message}"
            continue
        found = f"{match['kind']}: {message}" if message else match["kind"]
    return None if found is None else found[:MAX_CAUSE_CHARS]


def process_ids(message: str) -> list[int]:
    """Process ids that one of Ray's messages names."""
    return [int(pid) for pid in re.findall(r"\bpid[=: ]+(\d+)", message)]


def worker_logs(logs_dir: Path, message: str) -> list[Path]:
    """The output of the processes that ``message`` names: ``worker-<id>-<job>-<pid>.out`` and ``.err``."""
    return [path for pid in process_ids(message) for path in sorted(logs_dir.glob(f"worker-*-{pid}.*"))]
