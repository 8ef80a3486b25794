"""What an engine on CPU imports, named for the zygote: with these, a process that it forks imports next to nothing."""

MODULES = (
    "serving.replica.host",
    "serving.engine.vllm_engine",
    "serving.engine.cpu_worker",
    "vllm.v1.engine.core",
    "vllm.v1.executor.uniproc_executor",
    "vllm.model_executor.models.llama",
)
