"""The ``limits`` section: every cap on what one request may ask, checked by the gateway before an engine sees it."""

from typing import Self

from pydantic import Field, model_validator

from serving.config.section import Section


class Limits(Section):
    """Caps per request unless the description says otherwise. Crossing one is answered with 4xx that names it."""

    # The request as bytes and as JSON.
    max_body_bytes: int = Field(
        default=4 * 2**20, ge=1024, le=48 * 2**20, description="Bytes of a request body; more is a 413."
    )
    body_timeout_s: float = Field(
        default=15.0, gt=0, le=600, description="Seconds for the whole body to arrive; later is a 408."
    )
    max_headers: int = Field(default=100, ge=16, le=1000, description="Header lines; more is a 431.")
    max_header_bytes: int = Field(
        default=32_768, ge=4096, le=61_440, description="Bytes of all headers together; more is a 431."
    )
    max_json_depth: int = Field(default=100, ge=8, le=250, description="Nesting of objects and arrays in the body.")
    max_json_nodes: int = Field(
        default=250_000,
        ge=1000,
        le=10_000_000,
        description="Values in the body; objects, arrays and keys may be a fifth of it.",
    )

    # Conversation and prompts.
    max_messages: int = Field(default=2048, ge=1, le=100_000, description="Messages of a conversation.")
    max_tools: int = Field(default=128, ge=0, le=1024, description="Tools offered to the model.")
    max_prompts: int = Field(default=128, ge=1, le=4096, description="Prompts of one /v1/completions request.")
    max_embedding_inputs: int = Field(
        default=2048, ge=1, le=100_000, description="Inputs of one /v1/embeddings request."
    )

    # Sampling.
    max_n: int = Field(default=8, ge=1, le=128, description="Answers per prompt (`n`).")
    max_output_tokens: int | None = Field(
        default=None, ge=1, le=10_000_000, description="Output tokens per answer; null: what the context leaves."
    )
    max_stop: int = Field(default=4, ge=0, le=64, description="Stop strings.")
    max_stop_chars: int = Field(default=256, ge=1, le=4096, description="Characters of one stop string.")
    max_stop_token_ids: int = Field(default=64, ge=0, le=4096, description="Entries of `stop_token_ids`.")
    max_top_logprobs: int = Field(default=20, ge=0, le=100, description="`top_logprobs` of chat and responses.")
    max_logprobs: int = Field(default=5, ge=0, le=100, description="`logprobs` of /v1/completions.")
    max_logit_bias: int = Field(default=300, ge=0, le=10_000, description="Entries of `logit_bias`.")
    max_bad_words: int = Field(default=128, ge=0, le=10_000, description="Entries of `bad_words`.")
    max_allowed_token_ids: int = Field(default=1024, ge=0, le=1_000_000, description="Entries of `allowed_token_ids`.")

    # Structured output and tool schemas: compiling one is cubic in its depth.
    max_schema_depth: int = Field(default=32, ge=1, le=64, description="Nesting of one JSON schema.")
    max_schema_bytes: int = Field(default=65_536, ge=256, le=2**20, description="Bytes of one JSON schema.")
    max_schema_properties: int = Field(
        default=5000, ge=1, le=50_000, description="Properties of one JSON schema, all levels."
    )
    max_schema_enum: int = Field(
        default=1000, ge=1, le=50_000, description="Enum values of one JSON schema, all together."
    )
    max_schema_repeat: int = Field(
        default=1000, ge=1, le=100_000, description="Largest minItems, maxItems, minLength or maxLength of a schema."
    )
    max_schema_repeats: int = Field(
        default=4000,
        ge=1,
        le=1_000_000,
        description="All string lengths and pattern repetitions of one JSON schema, added up.",
    )
    max_schema_optional: int = Field(
        default=256,
        ge=0,
        le=10_000,
        description="Optional properties of one object of a JSON schema; of several, the root of the sum of squares.",
    )
    grammar_compile_s: float = Field(
        default=2.0,
        gt=0,
        le=60,
        description="Seconds of processor time in which a request's schemas, patterns and grammars must compile.",
    )
    allow_regex: bool = Field(
        default=False,
        description="Take client-made regular expressions as output constraints, also inside a JSON schema.",
    )
    allow_grammar: bool = Field(
        default=False, description="Take client-made grammars and structural tags as constraints."
    )
    max_pattern_chars: int = Field(default=4096, ge=1, le=65_536, description="Characters of one pattern or grammar.")

    # Streams and time.
    max_concurrent_requests: int = Field(
        default=2048,
        ge=1,
        le=1_000_000,
        description="Requests in flight per gateway; more is a 503, or a 429 for a tenant with more than its share.",
    )
    max_bytes_in_flight: int = Field(
        default=2**28,
        ge=2**20,
        le=2**36,
        description="Bytes of all requests in flight per gateway, which takes about twice as much memory for them; "
        "more is a 503, or a 429 for a tenant with more than its share.",
    )
    stream_buffer_bytes: int = Field(
        default=262_144,
        ge=4096,
        le=2**26,
        description="Unsent bytes kept for a slow reader before its stream is paused.",
    )
    slow_reader_timeout_s: float = Field(
        default=60.0, gt=0, le=240, description="Seconds a paused stream may stay full."
    )
    max_queued_requests: int = Field(
        default=1024,
        ge=1,
        le=1_000_000,
        description="Requests of one model waiting in a gateway; more is a 503, or a 429 for the tenant with most.",
    )
    queue_timeout_s: float = Field(
        default=30.0, ge=0, le=3600, description="Seconds to wait for a replica that can take the request; then a 503."
    )
    first_byte_timeout_s: float = Field(
        default=300.0,
        gt=0,
        le=3600,
        description="Seconds to an answer's first byte; then another replica is tried, at last it is a 504.",
    )
    inter_chunk_timeout_s: float = Field(
        default=60.0,
        gt=0,
        le=3600,
        description="Seconds between two chunks of a running answer; then another replica goes on.",
    )
    retry_budget_ratio: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="Streams moved to another replica, as a share of a model's requests (10 s window).",
    )
    retry_budget_floor: int = Field(
        default=256,
        ge=0,
        le=1_000_000,
        description="Streams of a model that may be moved in 10 s however few requests there are.",
    )
    quarantine_s: float = Field(
        default=600.0, ge=0, le=86_400, description="Seconds that a request on which two engines died is refused."
    )
    max_request_s: float = Field(default=3600.0, gt=0, le=86_400, description="Seconds a request may take in all.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.max_schema_bytes > self.max_body_bytes:
            raise ValueError("max_schema_bytes is over max_body_bytes, so it could never be reached")
        if self.max_body_bytes > self.max_bytes_in_flight:
            raise ValueError("max_body_bytes is over max_bytes_in_flight, so it could never be reached")
        return self
