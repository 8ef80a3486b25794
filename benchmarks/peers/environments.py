"""The environments that peers run in: each installed by itself from pinned packages, none of them ours."""

import importlib.metadata
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.launch import PeerError

_ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True, slots=True)
class Environment:
    """``folder`` under the checkout; None: the one that Ballast itself runs in."""

    folder: str | None

    @property
    def python(self) -> str:
        """Its interpreter. Raises PeerError where it is not installed."""
        if self.folder is None:
            return sys.executable
        return str(self._file("python"))

    def program(self, name: str) -> str:
        """One of its programs. Raises PeerError where it is not installed."""
        return str(self._file(name))

    def version(self, distribution: str) -> str:
        """Raises PeerError where the environment or the distribution is not installed."""
        if self.folder is None:
            found = list(importlib.metadata.distributions(name=distribution))
        else:
            self._file("python")
            sites = [str(site) for site in (_ROOT / self.folder).glob("lib/python*/site-packages")]
            found = list(importlib.metadata.distributions(name=distribution, path=sites))
        if not found:
            raise PeerError(f"{distribution} is not installed; install it with `make setup-peers`")
        return found[0].version

    def _file(self, name: str) -> Path:
        assert self.folder is not None, "our own environment is asked for its interpreter alone"
        path = _ROOT / self.folder / "bin" / name
        if not path.exists():
            raise PeerError(f"{self.folder} is not installed; install it with `make setup-peers`")
        return path


OURS = Environment(None)
PROXIES = Environment(".venv-peers")
RAY_LLM = Environment(".venv-peers-ray")
