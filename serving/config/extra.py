"""What `engine.extra` takes: the fields of vLLM's AsyncEngineArgs that Ballast neither sets itself nor forbids."""

CODE = "would load code by name into the engine"
FILES = "would let a request make the engine read files, fetch addresses or load tensors"
PRIVACY = "would write prompts or answers into the log"
LISTENER = "would open an unauthenticated listener between engines"
SERVER = "belongs to an HTTP server, and the engine here has none"
ONE_NODE = "does not apply: a replica lives on one node, and a pool's replicas are the data parallelism"

_GROUPS = {
    CODE: """
        trust_remote_code worker_cls worker_extension_cls scheduler_cls logits_processors reasoning_parser_plugin
        tool_parser_plugin io_processor_plugin model_class_overrides middleware profiler_config
    """,
    FILES: "allowed_local_media_path allowed_media_domains enable_mm_embeds enable_prompt_embeds",
    PRIVACY: "enable_log_requests enable_log_outputs enable_log_deltas max_log_len log_error_stack",
    LISTENER: "kv_transfer_config kv_events_config ec_transfer_config ec_manager_config weight_transfer_config",
    SERVER: """
        allow_credentials allowed_headers allowed_methods allowed_origins api_server_count chat_template_content_format
        cohere_format cohere_is_reasoning_model config data_parallel_supervisor_port default_chat_template_kwargs
        disable_access_log_for_endpoints disable_fastapi_docs disable_uvicorn_access_log
        dp_supervisor_probe_failure_threshold dp_supervisor_probe_interval_s dp_supervisor_probe_timeout_s
        enable_flash_late_interaction enable_force_include_usage enable_offline_docs enable_per_request_metrics
        enable_prompt_tokens_details enable_request_id_headers enable_server_load_tracking enable_ssl_refresh
        enable_tokenizer_info_endpoint exclude_tools_when_tool_choice_none fingerprint_mode fingerprint_value grpc
        h11_max_header_count h11_max_incomplete_event_size headless host log_config_file lora_modules model_tag port
        response_role return_tokens_as_token_ids root_path sse_keep_alive_interval ssl_ca_certs ssl_cert_reqs
        ssl_certfile ssl_ciphers ssl_keyfile tool_server trust_request_chat_template uds uvicorn_log_level
    """,
    ONE_NODE: """
        nnodes node_rank master_addr master_port pipeline_parallel_size data_parallel_address data_parallel_backend
        data_parallel_external_lb data_parallel_hybrid_lb data_parallel_multi_port_external_lb data_parallel_rank
        data_parallel_rpc_port data_parallel_size data_parallel_size_local data_parallel_start_rank
    """,
}

REFUSED = {name: reason for reason, names in _GROUPS.items() for name in names.split()} | {
    "api_key": "is a secret, and guards only some of the engine's routes; use `ballast keys`",
    "hf_token": "is a secret, and secrets never live in the file; export HF_TOKEN instead",
    "model": "is models[].source",
    "model_weights": "is models[].source",
    "tokenizer": "is read from models[].source",
    "revision": "is models[].revision",
    "tokenizer_revision": "is models[].revision",
    "code_revision": "is models[].revision",
    "served_model_name": "is models[].name and models[].aliases",
    "max_model_len": "is models[].max_model_len",
    "runner": "is models[].task",
    "convert": "is models[].task",
    "chat_template": "is models[].chat_template",
    "tool_call_parser": "is models[].tool_call_parser",
    "enable_auto_tool_choice": "follows from models[].tool_call_parser",
    "reasoning_parser": "is models[].reasoning_parser",
    "max_logprobs": "is limits.max_top_logprobs",
    "tensor_parallel_size": "follows from the pool's gpus_per_replica",
    "device_ids": "is chosen by Ray from the pool's gpus_per_replica",
    "kv_cache_memory_bytes": "is engine.kv_cache_gib (cpu) or engine.gpu_memory_utilization (cuda)",
    "shutdown_timeout": "is server.shutdown_grace_s",
    "distributed_executor_backend": "is chosen by Ballast per device",
    "scheduling_policy": "does not apply: order between requests is the gateway's",
    "disable_log_stats": "must stay off: the watchdog and the metrics need the engine's statistics",
    "skip_tokenizer_init": "does not apply: the endpoints speak text",
    "tokens_only": "does not apply: the endpoints speak text",
}
"""Every argument that `engine.extra` refuses, and why: the rest of the sentence that its name begins."""


def permitted(key: str) -> str:
    """``key`` if `engine.extra` may hold it; ValueError with the reason otherwise."""
    if key in REFUSED:
        raise ValueError(f"not taken here: {key} {REFUSED[key]}")
    if key.startswith("_"):
        raise ValueError("not taken here: a private argument of vLLM")
    return key
