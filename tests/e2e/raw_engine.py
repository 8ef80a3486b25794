"""The replica's vLLM engine, which also answers raw on a port of its own, so that both answers can be compared."""

from pathlib import Path

from benchmarks.raw_engine import RawServedEngine
from serving.engine.vllm_engine import VllmOptions
from serving.ports import free_port
from serving.replica.options import ReplicaOptions


def build(options: ReplicaOptions) -> RawServedEngine:
    """Each replica takes another port, so that its successor need not wait for it; the newest is on file."""
    port = free_port()
    (Path(options.runtime_dir) / "raw_port").write_text(str(port))
    return RawServedEngine(
        VllmOptions(
            options.source, options.served_names, options.engine_args, options.grammar_compile_s,
            zygote_path=options.zygote_path,
        ),
        port,
    )  # fmt: skip
