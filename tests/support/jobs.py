"""Work for a sandbox under test."""

import ctypes
import json
import os
import resource
import signal

from serving.engine.sandbox import Work


def load(settings: bytes) -> Work:
    """What a job's first word says."""

    def work(job: bytes) -> bytes:
        word, _, rest = job.partition(b" ")
        if word == b"spin":
            while True:
                pass
        elif word == b"crash":
            ctypes.string_at(0)
        elif word == b"fill":
            bytearray(2**32)
        elif word == b"raise":
            raise ValueError("no such job")
        elif word == b"hang":
            signal.pause()
        elif word == b"pids":
            return f"{os.getpid()} {os.getppid()} {os.nice(0)} {resource.getrlimit(resource.RLIMIT_CORE)[0]}".encode()
        return settings + rest

    return work


def load_grammars(settings: bytes) -> Work:
    """Stands for vLLM's conversions: schemas titled ``!spin`` take for ever, those titled ``!bad`` are wrong."""

    def work(job: bytes) -> bytes:
        outcomes: list[dict[str, object]] = []
        for fields in json.loads(job):
            title = fields["json"].get("title")
            while title == "!spin":
                pass
            if title == "!bad":
                outcomes.append({"error": "a bad title"})
                break
            outcomes.append({"backend": "xgrammar", "was_auto": True, "grammar": None})
        return json.dumps(outcomes).encode()

    return work
