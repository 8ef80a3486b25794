"""What is asked of a server before a run."""

import socketserver
import threading
from collections.abc import Iterator

import pytest

from benchmarks.load.mistake import BenchError
from benchmarks.load.probe import first_model
from benchmarks.load.target import parse_target


class Banner(socketserver.BaseRequestHandler):
    """Whatever is said to it, it says what an SSH server does."""

    def handle(self) -> None:
        self.request.recv(65536)
        self.request.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")


@pytest.fixture
def ssh_url() -> Iterator[str]:
    with socketserver.TCPServer(("127.0.0.1", 0), Banner) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_a_port_at_which_nobody_speaks_http_is_told(ssh_url: str) -> None:
    with pytest.raises(BenchError, match="does not speak HTTP"):
        first_model(parse_target(ssh_url))
