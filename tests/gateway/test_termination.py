"""SIGTERM reaches the gateway's loop in a thread that runs no signal handlers, and Ray's handler never."""

import subprocess
import sys

from ray._common.utils import load_class

from serving.gateway import termination

PROGRAM = """
import asyncio, ctypes, os, signal, threading
import ray._private.utils
from serving.gateway import termination

termination.listen()
ray._private.utils.set_sigterm_handler(lambda *_: os._exit(3))  # as Ray does after its hook

async def serve():
    told = asyncio.ensure_future(termination.told())
    await asyncio.sleep(0)
    os.kill(os.getpid(), signal.SIGUSR1)
    await asyncio.sleep(0.05)
    assert not told.done(), "another signal is none of ours"
    os.kill(os.getpid(), signal.SIGTERM)
    await told
    os._exit(0)

signal.signal(signal.SIGUSR1, lambda *_: None)
threading.Thread(target=asyncio.run, args=(serve(),)).start()
while True:  # in C, as Ray's loop is
    ctypes.CDLL(None).pause()
"""


def test_the_loop_hears_it_and_rays_handler_does_not() -> None:
    ended = subprocess.run([sys.executable, "-c", PROGRAM], timeout=60, check=False)
    assert ended.returncode == 0


def test_ray_finds_the_hook_by_its_name() -> None:
    (name,) = termination.ENVIRONMENT.values()
    assert load_class(name) is termination.listen
