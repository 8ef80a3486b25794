"""The engine of ``benchmarks.overhead``: a replica's vLLM engine that also answers raw, as vLLM's own server would.

Both paths then share one process, one event loop and one engine; what differs is what stands between them and the
client.
"""

import asyncio

import uvicorn

from serving.engine.vllm_engine import VllmEngine, VllmOptions
from serving.replica.options import ReplicaOptions


class RawServedEngine(VllmEngine):
    """``VllmEngine`` that also serves vLLM's stock app by uvicorn, the way ``vllm serve`` does it."""

    def __init__(self, options: VllmOptions, port: int) -> None:
        super().__init__(options)
        self._port = port
        self._raw: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await super().start()
        config = uvicorn.Config(
            await self.stock_app(),
            host="127.0.0.1",
            port=self._port,
            lifespan="off",
            access_log=False,
            log_level="error",
            log_config=None,
        )
        server = uvicorn.Server(config)
        self._raw = asyncio.create_task(server.serve())


def build(options: ReplicaOptions) -> RawServedEngine:
    args = dict(options.engine_args)
    port = args.pop("raw_port")
    return RawServedEngine(
        VllmOptions(options.source, options.served_names, args, zygote_path=options.zygote_path), port
    )
