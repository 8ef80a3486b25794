"""What an engine on CPU imports, named for the zygote: with these, a process that it forks imports next to nothing."""

import logging

MODULES = (
    "serving.replica.host",
    "serving.engine.vllm_engine",
    "serving.engine.cpu_worker",
    "vllm.v1.engine.core",
    "vllm.v1.executor.uniproc_executor",
    "vllm.model_executor.models.llama",
    "serving.engine.preload:load_kernels",
)


def load_kernels() -> None:
    """Compile the kernels, once on a machine, or read them from the disk: what is forked has them."""
    from kernels.warm_up import warm_up

    try:
        warm_up()
    except Exception as error:  # noqa: BLE001 - an engine that wants them meets it again, and says so
        logging.getLogger("ballast.engine").warning("the kernels do not load: %r", error)
