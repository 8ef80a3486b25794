"""Whether a seeded request has one answer: ``python -m benchmarks.reproducibility [--json FILE]``.

The same few seeded requests are sent again and again to a server of the bundled model, while random other requests
(greedy, hot, filtered, penalised, long prompts that are prefilled in chunks) change its batch between 1 and 64. Counted
are the answers that differ from the most frequent one of their request. Four servers: with Ballast's kernels and with
vLLM's own sampler, each with and without prefix caching.

A forward pass on CPU may round differently in another batch, whoever samples: ``greedy_other`` counts the same for
greedy requests, whose answers no sampler can keep apart from the logits.
"""

import argparse
import asyncio
import random
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import uvloop

from benchmarks import environment
from benchmarks.server import RunningServer, running

MODEL = "ballast-demo"
RESULT = Path(__file__).parent / "results" / "reproducibility.json"
NUM_TOKENS = 60
MAX_LOAD = 63
_PROMPT = "Tell me a story about a cat and the sea."
_ROOT = Path(__file__).resolve().parent.parent
SEEDED: tuple[dict[str, Any], ...] = (
    {"temperature": 1.0, "seed": 1},
    {"temperature": 1.3, "top_p": 0.95, "seed": 2},
    {"temperature": 0.9, "top_k": 40, "top_p": 0.9, "seed": 3},
    {"temperature": 1.1, "min_p": 0.05, "frequency_penalty": 0.5, "seed": 4},
)
GREEDY: dict[str, Any] = {"temperature": 0.0}


@dataclass(frozen=True, slots=True)
class Found:
    """One server."""

    kernels: str
    prefix_caching: bool
    num_answers: int
    num_other: int
    """Seeded answers that differ from the most frequent one of their request."""
    num_greedy: int
    greedy_other: int
    others_served: int
    others_refused: int
    """503: they would have waited for too long."""
    most_running: int


def config(kernels: str, prefix_caching: bool) -> dict[str, Any]:
    engine = {
        "kv_cache_gib": 0.5,
        "max_num_seqs": 64,
        "enforce_eager": True,
        "max_num_batched_tokens": 128,  # most prompts of the load are prefilled in chunks
        "enable_prefix_caching": prefix_caching,
        "kernels": kernels,
    }
    pool = {"name": "cpu", "device": "cpu", "cpus_per_replica": 1, "usd_per_hour": 0.1, "engine": engine}
    return {"models": [{"name": MODEL, "source": str(_ROOT / "models" / "demo"), "pools": [pool]}]}


class Load:
    """Requests of all kinds, as many at once as a random walk says."""

    def __init__(self, client: httpx.AsyncClient, seed: int) -> None:
        self._client = client
        self._rng = random.Random(seed)
        self.num_served = self.num_refused = self.num_running = self.most_running = 0

    async def run(self) -> None:
        tasks: set[asyncio.Task[None]] = set()
        try:
            while True:
                wanted = self._rng.randint(0, MAX_LOAD)
                for _ in range(max(0, wanted - self.num_running)):
                    task = asyncio.create_task(self._one())
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
                self.most_running = max(self.most_running, self.num_running)
                await asyncio.sleep(self._rng.uniform(0.05, 0.5))
        finally:
            for task in tasks:
                task.cancel()

    async def _one(self) -> None:
        rng = self._rng
        asked = rng.choice([GREEDY, {"temperature": 1.5}, {"temperature": 1.0, "top_k": 5}, *SEEDED])
        words = " ".join(str(rng.random()) for _ in range(rng.choice([1, 5, 40])))
        self.num_running += 1
        try:
            await ask(self._client, words, rng.randint(5, 80), asked)
            self.num_served += 1
        except httpx.HTTPStatusError as error:
            if error.response.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                raise
            self.num_refused += 1
        finally:
            self.num_running -= 1


async def ask(client: httpx.AsyncClient, prompt: str, num_tokens: int, asked: dict[str, Any]) -> str:
    body = {"model": MODEL, "messages": [{"role": "user", "content": prompt}], "max_tokens": num_tokens, **asked}
    answer = await client.post("/v1/chat/completions", json={**body, "ignore_eos": True})
    answer.raise_for_status()
    return str(answer.json()["choices"][0]["message"]["content"])


async def measure(server: RunningServer, kernels: str, prefix_caching: bool, num_answers: int) -> Found:
    """``num_answers`` of each seeded request, and of the greedy one."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", timeout=120, limits=limits) as client:
        load = Load(client, seed=1)
        background = asyncio.create_task(load.run())
        answers: list[Counter[str]] = [Counter() for _ in (*SEEDED, GREEDY)]
        for _ in range(num_answers):
            texts = await asyncio.gather(*(ask(client, _PROMPT, NUM_TOKENS, asked) for asked in (*SEEDED, GREEDY)))
            for counter, text in zip(answers, texts, strict=True):
                counter[text] += 1
        background.cancel()
        await asyncio.gather(background, return_exceptions=True)
    *seeded, greedy = answers
    return Found(
        kernels=kernels,
        prefix_caching=prefix_caching,
        num_answers=num_answers * len(SEEDED),
        num_other=sum(_num_other(counter) for counter in seeded),
        num_greedy=num_answers,
        greedy_other=_num_other(greedy),
        others_served=load.num_served,
        others_refused=load.num_refused,
        most_running=load.most_running,
    )


def _num_other(answers: "Counter[str]") -> int:
    return answers.total() - max(answers.values())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reproducibility", description=__doc__)
    parser.add_argument("--answers", type=int, default=200, help="to each request, from each server")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file")
    chosen = parser.parse_args(arguments)
    head = environment.describe()
    found = []
    for kernels in ("on", "off"):
        for prefix_caching in (True, False):
            with running(config(kernels, prefix_caching)) as server:
                row = uvloop.run(measure(server, kernels, prefix_caching, chosen.answers))
            print(row, flush=True)
            found.append(asdict(row))
    if chosen.json:
        environment.write(chosen.json, {**head, "servers": found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
