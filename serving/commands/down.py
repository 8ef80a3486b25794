"""``ballast down``: stop the server that runs over the config's state folder."""

import json
import os
import signal
import time
from argparse import Namespace
from pathlib import Path

from serving.commands.settings import load_settings
from serving.errors import StateError
from serving.lifecycle.record import ServerRecord, running_server
from serving.lifecycle.server import STOP_MARGIN_S

POLL_S = 0.1
EXTRA_PATIENCE_S = 15.0
"""For `ballast up` itself to end what is left."""


def run(arguments: Namespace) -> int:
    """Returns 0 when no server runs any more; also when none did."""
    _, config = load_settings(arguments)
    record = running_server(config.server.state_dir)
    if record is None:
        _tell(arguments, f"No server runs over {config.server.state_dir}.", stopped=False)
        return 0
    began_s = time.monotonic()
    _stop(record, config.server.shutdown_grace_s + STOP_MARGIN_S + EXTRA_PATIENCE_S)
    seconds = time.monotonic() - began_s
    _tell(arguments, f"Stopped the server (process {record.pid}) after {seconds:.1f} s.", stopped=True)
    return 0


def _stop(record: ServerRecord, patience_s: float) -> None:
    """Ask it to stop and wait. Raises StateError when we may not, or it does not end."""
    pidfd = os.pidfd_open(record.pid)  # from here on the number cannot come to mean another process
    try:
        if not record.is_running():
            return
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
    except PermissionError as error:
        raise StateError(f"The server (process {record.pid}) belongs to another user; stop it as that user.") from error
    finally:
        os.close(pidfd)
    deadline_s = time.monotonic() + patience_s
    while record.is_running() or Path(record.runtime_dir).exists():
        if time.monotonic() > deadline_s:
            words = f"The server (process {record.pid}) did not stop within {patience_s:g} s"
            raise StateError(f"{words}; end it with: kill -9 {record.pid}")
        time.sleep(POLL_S)


def _tell(arguments: Namespace, words: str, *, stopped: bool) -> None:
    print(json.dumps({"stopped": stopped, "message": words}) if arguments.json else words)
