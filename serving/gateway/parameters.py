"""The parameter table: what happens to every field of every endpoint. The reference page is generated from it.

It covers every field of vLLM 0.29's request models, of the public OpenAI document, and of the official clients; a test
fails when one of them has a field that is not here, or when an entry names a field that none of them has. A field that
is not here is refused. A null counts as absent everywhere.
"""

from collections.abc import Mapping
from operator import attrgetter

from serving.gateway import (
    checks_anthropic,
    checks_output,
    checks_responses,
    checks_sampling,
    checks_tools,
    rules,
)
from serving.gateway.checks import (
    INT64_MAX,
    INT64_MIN,
    Array,
    Boolean,
    Integer,
    Labels,
    Number,
    OneOf,
    OpenObject,
    Text,
)
from serving.gateway.checks_messages import MESSAGES, TEXT_ONLY
from serving.gateway.checks_prompt import Prompts, tokens
from serving.gateway.endpoint import Endpoint
from serving.gateway.parameter import (
    Action,
    Form,
    Parameter,
    capped,
    ignored,
    overwritten,
    passed,
    refused,
    required,
)
from serving.gateway.rules import Rule, ToolsAgree, output_fits

_ENGINE_ONLY = "it steers the engine's insides, which are not the client's"
_PROMPT_BACK = "it would return the prompt as the engine saw it"
_TEMPLATE = "the chat template is the operator's (models[].chat_template)"
_NO_BEAMS = "beam search is not served"
_PROVIDER = "a feature of the hosted service that has no counterpart here"
_NOT_STORED = "nothing is stored here"
_EMPTY: list[object] = []
_MAX_LOGPROB_TOKEN_IDS = 128  # vLLM's own
_MAX_STREAM_INTERVAL = 128  # more would look like a silent replica
_RENDER_ONLY = "it has an effect only on vLLM's render endpoints, which are not served"
_CACHE_HINT = "accepted; no effect yet"
_SCHEMAS = "a schema is bounded before the engine sees it (limits.max_schema_*)"
_CONTEXT = "over the model's context: `context_length_exceeded`"
_USAGE = "the gateway counts in any case; the usage chunk is sent to clients that ask"
_USER_ID = Text(512)

# ------------------------------------------------------------------------------------------------------- shared groups

_MODEL = {"model": required(Text(256, min_chars=1), "answered under the name that was asked for")}
_OURS = {
    "request_id": overwritten("ours, so that no client can take another's", attrgetter("request_id")),
    "cache_salt": overwritten("set per tenant: prefix-cache hits never cross tenants", attrgetter("cache_salt")),
    "session_id": overwritten("removed; it would steer routing inside the engine"),
    "priority": overwritten("removed; it would let a client overtake others"),
}
_INTERNALS = {
    "kv_transfer_params": refused(_ENGINE_ONLY),
    "ec_transfer_params": refused(_ENGINE_ONLY),
    "vllm_xargs": refused(_ENGINE_ONLY),
}
_MEDIA = {
    "media_io_kwargs": refused(TEXT_ONLY),
    "mm_processor_kwargs": refused(TEXT_ONLY),
}
_TEMPLATES = {
    "chat_template": refused(_TEMPLATE),
    "chat_template_kwargs": capped(OpenObject(64), "only keys that the model's config lists"),
}
_ACCOUNT = {
    "metadata": ignored("not stored", Labels(16, 64, 512)),
    "service_tier": ignored("`flex`: served after all others, without a deadline; else interactive", Text(64)),
    "safety_identifier": ignored("not stored", _USER_ID),
    "user": ignored("not stored", _USER_ID),
    "prompt_cache_key": ignored(_CACHE_HINT, _USER_ID),
    "prompt_cache_retention": ignored(_CACHE_HINT, Text(64)),
    "prompt_cache_options": ignored(_CACHE_HINT),
    "moderation": refused(_PROVIDER),
}
_SAMPLING = {
    "temperature": passed(Number(0, 2)),
    "top_p": passed(Number(0, 1, is_open=True)),
    "top_k": passed(Integer(-1)),
    "frequency_penalty": passed(Number(-2, 2)),
    "presence_penalty": passed(Number(-2, 2)),
    "repetition_penalty": passed(Number(0, 10, is_open=True)),
    "seed": passed(Integer(INT64_MIN, INT64_MAX)),
    "stop": capped(checks_sampling.stop),
    "logit_bias": capped(checks_sampling.logit_bias),
    "include_stop_str_in_output": passed(Boolean()),
    "ignore_eos": passed(Boolean()),
    "skip_special_tokens": passed(Boolean()),
    "structured_outputs": capped(checks_output.structured_outputs, "regex and grammar are off by default"),
}
_MORE_SAMPLING = {
    "min_p": passed(Number(0, 1)),
    "min_tokens": passed(Integer(0), "at most the output asked for"),
    "stop_token_ids": capped(Array(Integer(0), "max_stop_token_ids")),
    "allowed_token_ids": capped(Array(Integer(0), "max_allowed_token_ids", min_items=1)),
    "logprob_token_ids": capped(Array(Integer(0), _MAX_LOGPROB_TOKEN_IDS, min_items=1), "needs `logprobs`"),
    "bad_words": capped(Array(Text("max_stop_chars", min_chars=1), "max_bad_words")),
    "thinking_token_budget": passed(Integer(-1)),
    "repetition_detection": capped(checks_sampling.REPETITION_DETECTION),
    "spaces_between_special_tokens": passed(Boolean()),
    "add_special_tokens": passed(Boolean()),
    "truncate_prompt_tokens": passed(Integer(-1)),
    "truncation_side": passed(OneOf("left", "right")),
    "stream_interval": capped(Integer(1, _MAX_STREAM_INTERVAL)),
    "return_tokens_as_token_ids": passed(Boolean()),
    "return_token_ids": passed(Boolean()),
    "return_token_offsets": ignored(_RENDER_ONLY, Boolean()),
    "routed_experts_prompt_start": ignored(_RENDER_ONLY, Integer(0)),
    "length_penalty": ignored(_NO_BEAMS, Number(-100, 100)),
    "use_beam_search": refused(_NO_BEAMS, False),
    "prompt_logprobs": refused("one row of log-probabilities per prompt token costs too much memory"),
    "response_format": capped(checks_output.RESPONSE_FORMAT, _SCHEMAS),
    "stream": passed(Boolean()),
    "stream_options": passed(checks_sampling.STREAM_OPTIONS, _USAGE),
    "n": capped(Integer(1, "max_n")),
}

# ----------------------------------------------------------------------------------------------------------- endpoints

_CHAT = {
    **_MODEL,
    "messages": required(MESSAGES, "text only; members that no chat template reads are dropped"),
    **_SAMPLING,
    **_MORE_SAMPLING,
    "max_completion_tokens": capped(Integer(1, "max_output_tokens"), _CONTEXT),
    "max_tokens": capped(Integer(1, "max_output_tokens"), "the old name of `max_completion_tokens`, which wins"),
    "logprobs": passed(Boolean()),
    "top_logprobs": capped(Integer(0, "max_top_logprobs"), "needs `logprobs`"),
    "tools": capped(checks_tools.CHAT_TOOLS, "functions only; schemas are bounded"),
    "tool_choice": passed(checks_tools.CHAT_TOOL_CHOICE),
    "parallel_tool_calls": passed(Boolean()),
    "reasoning_effort": passed(OneOf("none", "minimal", "low", "medium", "high", "xhigh", "max")),
    "include_reasoning": passed(Boolean()),
    "echo": passed(Boolean(), "not together with `logprobs`"),
    "add_generation_prompt": passed(Boolean()),
    "continue_final_message": passed(Boolean()),
    **_TEMPLATES,
    **_ACCOUNT,
    "store": ignored(_NOT_STORED, Boolean()),
    "prediction": ignored("accepted; no effect", OpenObject()),
    "verbosity": ignored("accepted; no effect", OneOf("low", "medium", "high")),
    "modalities": ignored("text is all there is", Array(OneOf("text"), 1)),
    "audio": refused(TEXT_ONLY),
    "web_search_options": refused(_PROVIDER),
    "functions": refused("deprecated: send 'tools', whose calls come back elsewhere", _EMPTY),
    "function_call": refused("deprecated: send 'tool_choice'", "none", "auto"),
    "documents": refused(_TEMPLATE),
    "return_prompt_text": refused(_PROMPT_BACK, False),
    "return_assistant_tokens_mask": ignored(_RENDER_ONLY, Boolean()),
    **_MEDIA,
    **_INTERNALS,
    **_OURS,
}
_CHAT_RULES: tuple[Rule, ...] = (
    rules.one_output_cap,
    output_fits("max_tokens"),
    output_fits("max_completion_tokens"),
    rules.min_tokens_fit,
    rules.n_fits_temperature,
    rules.logprobs_asked,
    rules.one_output_shape,
    rules.one_end_of_chat,
    rules.template_kwargs_listed,
    ToolsAgree("parameters", nested="function"),
    rules.stream_options_need_stream,
    rules.engine_stream_options,
)

_COMPLETIONS = {
    **_MODEL,
    "prompt": required(Prompts("max_prompts")),
    **_SAMPLING,
    **_MORE_SAMPLING,
    "max_tokens": capped(Integer(0, "max_output_tokens"), "0 only with `echo`; " + _CONTEXT),
    "logprobs": capped(Integer(0, "max_logprobs")),
    "echo": passed(Boolean()),
    "best_of": Parameter(Action.REFUSED, Integer(0), "over `n`: all answers made are returned"),
    "suffix": refused("no model here fills in the middle", ""),
    "user": _ACCOUNT["user"],
    "prompt_embeds": refused("tensors from clients are not deserialised"),
    **_INTERNALS,
    **_OURS,
}
_COMPLETIONS_RULES: tuple[Rule, ...] = (
    output_fits("max_tokens"),
    rules.output_unless_echo,
    rules.min_tokens_fit,
    rules.n_fits_temperature,
    rules.prompts_times_n,
    rules.best_of_is_n,
    rules.one_output_shape,
    rules.stream_options_need_stream,
    rules.engine_stream_options,
)

_RESPONSES = {
    **_MODEL,
    "input": required(checks_responses.INPUT, "text, function calls and their outputs"),
    "instructions": passed(Text()),
    **_SAMPLING,
    "max_output_tokens": capped(Integer(1, "max_output_tokens"), _CONTEXT),
    "top_logprobs": capped(Integer(0, "max_top_logprobs"), "needs `message.output_text.logprobs` in `include`"),
    "include": passed(checks_responses.include),
    "text": capped(checks_output.RESPONSES_TEXT, _SCHEMAS),
    "tools": capped(checks_tools.RESPONSES_TOOLS, "functions only; schemas are bounded"),
    "tool_choice": passed(checks_tools.RESPONSES_TOOL_CHOICE),
    "parallel_tool_calls": passed(Boolean()),
    "reasoning": passed(checks_responses.REASONING),
    "include_reasoning": passed(Boolean()),
    "truncation": passed(OneOf("auto", "disabled")),
    "stream": passed(Boolean()),
    "stream_options": ignored("events are not padded", checks_sampling.STREAM_OPTIONS),
    "chat_template_kwargs": _TEMPLATES["chat_template_kwargs"],
    **_ACCOUNT,
    "metadata": passed(Labels(16, 64, 512), "returned with the response, not stored"),
    "store": overwritten("false: " + _NOT_STORED, lambda _: False),
    "background": refused("a response is made while the client waits: send 'background': false", False),
    "previous_response_id": refused(checks_responses.STATELESS),
    "conversation": refused(checks_responses.STATELESS),
    "prompt": refused("prompt templates are not stored here"),
    "context_management": refused(_PROVIDER),
    "max_tool_calls": ignored("it counts calls of tools that the server would run", Integer(0)),
    "previous_input_messages": refused(checks_responses.STATELESS),
    "enable_response_messages": refused(_PROMPT_BACK, False),
    "access_programs": refused(_PROVIDER),
    "background_options": refused(_PROVIDER),
    "image": refused(TEXT_ONLY),
    **_MEDIA,
    **_INTERNALS,
    **_OURS,
}
_RESPONSES_RULES: tuple[Rule, ...] = (
    output_fits("max_output_tokens"),
    rules.response_logprobs_asked,
    rules.one_output_shape,
    rules.template_kwargs_listed,
    ToolsAgree("parameters"),
)

_COUNT_TOKENS = {
    **_MODEL,
    "messages": required(checks_anthropic.MESSAGES, "text, tool calls and their results"),
    "system": passed(checks_anthropic.SYSTEM),
    "tools": capped(checks_anthropic.TOOLS, "custom tools only; schemas are bounded"),
    "tool_choice": passed(checks_anthropic.TOOL_CHOICE),
    "chat_template_kwargs": _TEMPLATES["chat_template_kwargs"],
    "thinking": ignored("whether a model thinks is set by `output_config.effort`", OpenObject()),
    "cache_control": ignored("prefixes are cached without being asked"),
    "output_config": ignored("it does not change the count", OpenObject()),
    "speed": ignored("there is one speed", Text(64)),
    "user_profile_id": ignored("not stored", _USER_ID),
    "workspace_id": ignored("not stored", _USER_ID),
}
_MESSAGES = {
    **_COUNT_TOKENS,
    "max_tokens": Parameter(Action.CAPPED, Integer(1, "max_output_tokens"), _CONTEXT, is_required=True),
    "temperature": passed(Number(0, 2)),
    "top_p": passed(Number(0, 1, is_open=True)),
    "top_k": passed(Integer(-1)),
    "stop_sequences": capped(Array(Text("max_stop_chars", min_chars=1), "max_stop")),
    "stream": passed(Boolean()),
    "output_config": capped(checks_output.OUTPUT_CONFIG, _SCHEMAS),
    "metadata": ignored("not stored", OpenObject(16)),
    "service_tier": ignored("`flex`: served after all others, without a deadline; else interactive", Text(64)),
    "inference_geo": ignored("inference runs where this server runs", Text(64)),
    "context_management": ignored(_PROVIDER, OpenObject()),
    "diagnostics": ignored(_PROVIDER),
    "betas": ignored(_PROVIDER, Array(Text(128), 64)),
    "container": refused(_PROVIDER),
    "mcp_servers": refused("servers named by clients are not called", _EMPTY),
    "billing_policy": refused(_PROVIDER),
    "compaction": refused(_PROVIDER),
    "fallback_credit_token": refused(_PROVIDER),
    "fallbacks": refused(_PROVIDER, _EMPTY),
    "thread": refused(checks_responses.STATELESS),
    **_INTERNALS,
    "cache_salt": _OURS["cache_salt"],
}

_EMBEDDINGS = {
    **_MODEL,
    "input": required(Prompts("max_embedding_inputs")),
    "encoding_format": passed(OneOf("float", "base64"), "raw bytes are not served"),
    "dimensions": passed(Integer(1, 65_536)),
    "embed_dtype": passed(OneOf("float32", "float16", "bfloat16", "fp8_e4m3", "fp8_e5m2")),
    "endianness": passed(OneOf("native", "big", "little")),
    "use_activation": passed(Boolean()),
    "add_special_tokens": passed(Boolean()),
    "truncate_prompt_tokens": passed(Integer(-1)),
    "truncation_side": passed(OneOf("left", "right")),
    "padding": passed(OneOf("max_length", "do_not_pad")),
    "user": _ACCOUNT["user"],
    "messages": refused("send text as 'input'"),
    "add_generation_prompt": refused("it belongs to 'messages', which are not taken", False),
    "continue_final_message": refused("it belongs to 'messages', which are not taken", False),
    "chat_template": refused(_TEMPLATE),
    "chat_template_kwargs": refused("it belongs to 'messages', which are not taken"),
    **_MEDIA,
    "request_id": _OURS["request_id"],
    "cache_salt": _OURS["cache_salt"],
    "priority": _OURS["priority"],
}

_TOKENIZE = {
    **_MODEL,
    "prompt": passed(Text(), "either this or `messages`"),
    "messages": passed(MESSAGES, "either this or `prompt`"),
    "tools": capped(checks_tools.CHAT_TOOLS, "as in chat completions"),
    "add_special_tokens": passed(Boolean()),
    "return_token_strs": passed(Boolean()),
    "add_generation_prompt": passed(Boolean()),
    "continue_final_message": passed(Boolean()),
    **_TEMPLATES,
    **_MEDIA,
}
_DETOKENIZE = {**_MODEL, "tokens": required(tokens)}

FORMS: Mapping[Endpoint, Form] = {
    Endpoint.CHAT: Form(_CHAT, _CHAT_RULES),
    Endpoint.COMPLETIONS: Form(_COMPLETIONS, _COMPLETIONS_RULES),
    Endpoint.RESPONSES: Form(_RESPONSES, _RESPONSES_RULES),
    Endpoint.MESSAGES: Form(
        _MESSAGES,
        (output_fits("max_tokens"), rules.template_kwargs_listed, ToolsAgree("input_schema", forcing=("any", "tool"))),
    ),
    Endpoint.COUNT_TOKENS: Form(_COUNT_TOKENS, (rules.template_kwargs_listed, ToolsAgree("input_schema", forcing=()))),
    Endpoint.EMBEDDINGS: Form(_EMBEDDINGS),
    Endpoint.TOKENIZE: Form(
        _TOKENIZE,
        (
            rules.one_prompt_form,
            rules.one_end_of_chat,
            rules.template_kwargs_listed,
            ToolsAgree("parameters", nested="function"),
        ),
    ),
    Endpoint.DETOKENIZE: Form(_DETOKENIZE),
}
