"""What a process forked by a zygote may be told to do in a test. Each is called with a payload and a control socket."""

import json
import os
import socket
import sys
import threading
import time
from pathlib import Path


def describe(payload: bytes, control: socket.socket) -> None:
    """Say who we are, in one line of JSON."""
    print("to stdout", flush=True)
    told = {
        "pid": os.getpid(),
        "parent": os.getppid(),
        "payload": payload.decode(),
        "name": Path("/proc/self/comm").read_text().strip(),
        "environment": dict(os.environ),
        "threads": len(os.listdir("/proc/self/task")),
        "had_preloaded": "xml.dom.minidom" in sys.modules,
    }
    control.sendall(json.dumps(told).encode() + b"\n")


def wait(payload: bytes, control: socket.socket) -> None:
    """Say our process id, and stay."""
    control.sendall(f"{os.getpid()}\n".encode())
    time.sleep(60)


def fork(payload: bytes, control: socket.socket) -> None:
    """Say our process id and that of a child of ours, and stay, both."""
    child = os.fork()
    if child == 0:
        time.sleep(60)
    control.sendall(f"{os.getpid()} {child}\n".encode())
    time.sleep(60)


def fail(payload: bytes, control: socket.socket) -> None:
    raise ValueError(payload.decode())


def start_thread() -> None:
    """What a module that a zygote cannot import would do."""
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
