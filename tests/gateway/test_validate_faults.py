"""Rows F25 to F30 and F33 of the fault list: each bad request is a 400 that names the field and reaches no engine."""

import copy
import json

import pytest

from serving.config.limits import Limits
from serving.errors import BadRequest, ContextLengthExceeded
from serving.gateway.endpoint import Endpoint
from serving.gateway.json_body import parse
from serving.gateway.validate import RequestContext, ValidRequest, validate

LIMITS = Limits()
CONTEXT = RequestContext(max_model_len=4096, cache_salt="salt-of-the-tenant", request_id="req-ours")
CHAT: dict[str, object] = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
COMPLETION: dict[str, object] = {"model": "m", "prompt": "Hi"}
RESPONSE: dict[str, object] = {"model": "m", "input": "Hi"}
MESSAGE: dict[str, object] = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 16}

Fields = dict[str, object]


def send(endpoint: Endpoint, body: Fields, context: RequestContext = CONTEXT, limits: Limits = LIMITS) -> ValidRequest:
    """Through bytes, as a client's request comes."""
    return validate(endpoint, parse(json.dumps(body).encode(), limits), limits, context)


def refusal(endpoint: Endpoint, body: Fields, context: RequestContext = CONTEXT) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        send(endpoint, body, context)
    assert caught.value.answer.status == 400
    return caught.value


def chat_with(**fields: object) -> Fields:
    return {**CHAT, **fields}


# ------------------------------------------------------------------------------------------------- F25: malformed JSON


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b'{"model": "m", ', id="malformed"),
        pytest.param(b'[{"model": "m"}]', id="array body"),
        pytest.param(b'{"model": ' + b"[" * 50_000, id="50,000 deep"),
        pytest.param(b'{"model": "m", "model": "n"}', id="duplicate keys"),
        pytest.param(b'{"model": "m", "temperature": NaN}', id="NaN"),
        pytest.param(b'{"model": "m", "temperature": Infinity}', id="Infinity"),
        pytest.param(b'{"model": "\xc3\x28"}', id="invalid UTF-8"),
        pytest.param(b'{"model": "\\udfff"}', id="lone surrogate"),
        pytest.param(b'{"model": "m\\u0000"}', id="NUL"),
    ],
)
def test_f25_malformed_json_is_400_invalid_json(data: bytes) -> None:
    with pytest.raises(BadRequest) as caught:
        parse(data, LIMITS)
    assert (caught.value.answer.status, caught.value.answer.type) == (400, "invalid_request_error")
    assert caught.value.answer.code == "invalid_json"


# ----------------------------------------------------------------------------------------------------- F26: max_tokens

OUTPUT_FIELDS = [
    (Endpoint.CHAT, CHAT, "max_tokens"),
    (Endpoint.CHAT, CHAT, "max_completion_tokens"),
    (Endpoint.COMPLETIONS, COMPLETION, "max_tokens"),
    (Endpoint.RESPONSES, RESPONSE, "max_output_tokens"),
    (Endpoint.MESSAGES, MESSAGE, "max_tokens"),
]


@pytest.mark.parametrize(("endpoint", "body", "field"), OUTPUT_FIELDS)
@pytest.mark.parametrize(
    ("value", "code"),
    [
        (0, "integer_below_min_value"),
        (-1, "integer_below_min_value"),
        (2**70, "integer_above_max_value"),
        (2**63, "integer_above_max_value"),
        (1.5, "invalid_type"),
        (True, "invalid_type"),
        ("16", "invalid_type"),
        ([16], "invalid_type"),
    ],
)
def test_f26_a_bad_max_tokens_is_400_with_param(
    endpoint: Endpoint, body: Fields, field: str, value: object, code: str
) -> None:
    error = refusal(endpoint, {**body, field: value})
    assert (error.param, error.code) == (field, code)


@pytest.mark.parametrize(("endpoint", "body", "field"), OUTPUT_FIELDS)
def test_f26_output_over_the_context_is_context_length_exceeded(endpoint: Endpoint, body: Fields, field: str) -> None:
    for value in (10**9, 4096):
        error = refusal(endpoint, {**body, field: value})
        assert isinstance(error, ContextLengthExceeded)
        assert (error.param, error.code) == (field, "context_length_exceeded")
    assert send(endpoint, {**body, field: 4095}).max_output_tokens == 4095


@pytest.mark.parametrize(("endpoint", "body", "field"), OUTPUT_FIELDS)
def test_f26_with_an_unknown_context_the_engine_decides(endpoint: Endpoint, body: Fields, field: str) -> None:
    context = RequestContext(max_model_len=None, cache_salt="s", request_id="r")
    assert send(endpoint, {**body, field: 10**9}, context).max_output_tokens == 10**9


def test_f26_a_prompt_of_token_ids_over_the_context_is_refused() -> None:
    error = refusal(Endpoint.COMPLETIONS, {"model": "m", "prompt": [1] * 4090, "max_tokens": 16})
    assert error.code == "context_length_exceeded"


def test_f26_the_config_caps_the_output_and_bounds_what_may_be_reserved() -> None:
    limits = Limits(max_output_tokens=100)
    with pytest.raises(BadRequest, match="<= 100"):
        send(Endpoint.CHAT, chat_with(max_tokens=101), limits=limits)
    assert send(Endpoint.CHAT, CHAT, limits=limits).max_output_tokens == 100
    assert send(Endpoint.CHAT, CHAT).max_output_tokens is None


# ---------------------------------------------------------------------------------------- F27: many answers, many ranks


@pytest.mark.parametrize(
    ("endpoint", "body", "param"),
    [
        (Endpoint.CHAT, chat_with(n=2000), "n"),
        (Endpoint.CHAT, chat_with(n=10**9), "n"),
        (Endpoint.CHAT, chat_with(n=0), "n"),
        (Endpoint.CHAT, chat_with(n=9), "n"),
        (Endpoint.COMPLETIONS, {**COMPLETION, "n": 2000}, "n"),
        (Endpoint.COMPLETIONS, {"model": "m", "prompt": ["a"] * 20, "n": 8}, "n"),
        (Endpoint.COMPLETIONS, {"model": "m", "prompt": ["a"] * 129}, "prompt"),
        (Endpoint.COMPLETIONS, {**COMPLETION, "best_of": 2}, "best_of"),
        (Endpoint.COMPLETIONS, {**COMPLETION, "best_of": 1e6, "n": 2}, "best_of"),
        (Endpoint.CHAT, chat_with(best_of=2), "best_of"),
        (Endpoint.CHAT, chat_with(use_beam_search=True), "use_beam_search"),
        (Endpoint.COMPLETIONS, {**COMPLETION, "use_beam_search": True}, "use_beam_search"),
        (Endpoint.CHAT, chat_with(logprobs=True, top_logprobs=10**6), "top_logprobs"),
        (Endpoint.CHAT, chat_with(logprobs=True, top_logprobs=-1), "top_logprobs"),
        (Endpoint.CHAT, chat_with(logprobs=True, top_logprobs=21), "top_logprobs"),
        (Endpoint.CHAT, chat_with(top_logprobs=2), "top_logprobs"),
        (Endpoint.RESPONSES, {**RESPONSE, "top_logprobs": 10**6}, "top_logprobs"),
        (Endpoint.COMPLETIONS, {**COMPLETION, "logprobs": 6}, "logprobs"),
        (Endpoint.COMPLETIONS, {**COMPLETION, "logprobs": True}, "logprobs"),
        (Endpoint.CHAT, chat_with(prompt_logprobs=1), "prompt_logprobs"),
        (Endpoint.COMPLETIONS, {**COMPLETION, "prompt_logprobs": -1}, "prompt_logprobs"),
        (Endpoint.CHAT, chat_with(echo=True, logprobs=True), "echo"),
        (Endpoint.CHAT, chat_with(logprobs=True, logprob_token_ids=[1] * 129), "logprob_token_ids"),
    ],
)
def test_f27_more_answers_or_ranks_than_the_cap_are_400(endpoint: Endpoint, body: Fields, param: str) -> None:
    assert refusal(endpoint, body).param == param


# -------------------------------------------------------------------------------------- F28: lists and ids for sampling


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"logit_bias": {"abc": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"1.5": 1}}, "logit_bias"),
        ({"logit_bias": {"": 1}}, "logit_bias"),
        ({"logit_bias": {"²": 1}}, "logit_bias"),
        ({"logit_bias": {"9" * 50: 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"logit_bias": {"5": "1"}}, "logit_bias.5"),
        ({"logit_bias": {"5": True}}, "logit_bias.5"),
        ({"logit_bias": {str(i): 1 for i in range(301)}}, "logit_bias"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": ["a" * 257]}, "stop[0]"),
        ({"stop": "a" * 257}, "stop"),
        ({"stop": ["a", ""]}, "stop[1]"),
        ({"stop": ""}, "stop"),
        ({"stop": [1]}, "stop[0]"),
        ({"stop": {"a": 1}}, "stop"),
        ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
        ({"stop_token_ids": [2**31]}, "stop_token_ids[0]"),
        ({"stop_token_ids": list(range(65))}, "stop_token_ids"),
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"bad_words": ["a"] * 5000}, "bad_words"),
        ({"bad_words": [""]}, "bad_words[0]"),
        ({"seed": 1.5}, "seed"),
        ({"seed": "1"}, "seed"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"truncation_side": "up"}, "truncation_side"),
        ({"truncation_side": 1}, "truncation_side"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 1.1}, "min_p"),
        ({"presence_penalty": 2.1}, "presence_penalty"),
        ({"frequency_penalty": -2.1}, "frequency_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"min_tokens": 20, "max_tokens": 10}, "min_tokens"),
        ({"n": 2, "temperature": 0}, "n"),
    ],
)
def test_f28_bad_sampling_values_are_400_with_param(fields: Fields, param: str) -> None:
    for endpoint, body in ((Endpoint.CHAT, CHAT), (Endpoint.COMPLETIONS, COMPLETION)):
        assert refusal(endpoint, {**body, **fields}).param == param


@pytest.mark.parametrize("seed", [2**70, 2**63, -(2**63) - 1, -(2**70)])
def test_f28_a_seed_past_64_bits_is_400(seed: int) -> None:
    assert refusal(Endpoint.CHAT, chat_with(seed=seed)).param == "seed"


@pytest.mark.parametrize("seed", [0, -1, 2**53 + 1, 2**63 - 1, -(2**63)])
def test_f28_every_64_bit_seed_goes_on_unchanged(seed: int) -> None:
    assert send(Endpoint.CHAT, chat_with(seed=seed)).body["seed"] == seed


# ------------------------------------------------------------------------------------------- F30: patterns and grammars


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"structured_outputs": {"regex": "(a+)+$"}}, "structured_outputs.regex"),
        ({"structured_outputs": {"grammar": "root ::= root"}}, "structured_outputs.grammar"),
        ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag"),
        ({"structured_outputs": {"json": {}, "whitespace_pattern": "(a+)+"}}, "structured_outputs.whitespace_pattern"),
        ({"structured_outputs": {"choice": ["a"], "json": {}}}, "structured_outputs"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"structured_outputs": {"choice": ["a"] * 1001}}, "structured_outputs.choice"),
        ({"structured_outputs": {"backend": "x"}}, "structured_outputs.backend"),
        ({"response_format": {"type": "structural_tag", "format": {}}}, "response_format"),
        ({"response_format": {"type": "grammar", "grammar": "x"}}, "response_format.type"),
        ({"response_format": {"type": "regex"}}, "response_format.type"),
        ({"guided_regex": "a"}, "guided_regex"),
        ({"guided_grammar": "a"}, "guided_grammar"),
    ],
)
def test_f30_patterns_and_grammars_are_400_by_default(fields: Fields, param: str) -> None:
    assert refusal(Endpoint.CHAT, chat_with(**fields)).param == param


def test_f30_where_they_are_allowed_they_are_capped_at_4_kb() -> None:
    limits = Limits(allow_regex=True, allow_grammar=True)
    for kind in ("regex", "grammar"):
        send(Endpoint.CHAT, chat_with(structured_outputs={kind: "a" * 4096}), limits=limits)
        with pytest.raises(BadRequest, match="4096"):
            send(Endpoint.CHAT, chat_with(structured_outputs={kind: "a" * 4097}), limits=limits)
    small = {"type": "structural_tag", "format": {"x": "a"}}
    assert send(Endpoint.CHAT, chat_with(response_format=small), limits=limits).body["response_format"] == small
    tag = {"type": "structural_tag", "format": {"x": "a" * 5000}}
    with pytest.raises(BadRequest, match="4096"):
        send(Endpoint.CHAT, chat_with(response_format=tag), limits=limits)


# ---------------------------------------------------------------------------------- F33: unknown and dangerous fields

BASES = {
    Endpoint.CHAT: CHAT,
    Endpoint.COMPLETIONS: COMPLETION,
    Endpoint.RESPONSES: RESPONSE,
    Endpoint.MESSAGES: MESSAGE,
    Endpoint.EMBEDDINGS: {"model": "m", "input": "Hi"},
}


@pytest.mark.parametrize("endpoint", BASES)
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kv_transfer_params", {"do_remote_decode": True}),
        ("ec_transfer_params", {"x": 1}),
        ("vllm_xargs", {"x": 1}),
        ("chat_template", "{{ messages }}"),
        ("media_io_kwargs", {"video": {"num_frames": 10**9}}),
        ("mm_processor_kwargs", {"x": 1}),
        ("prompt_embeds", "AAAA"),
        ("documents", [{"text": "x"}]),
        ("return_prompt_text", True),
        ("use_beam_search", True),
        ("chat_template_kwargs", {"enable_thinking": False}),
        ("lora_request", {"lora_path": "/"}),
        ("logits_processors", ["os.system"]),
        ("trust_remote_code", True),
        ("__class__", "x"),
        ("", 1),
    ],
)
def test_f33_dangerous_and_unknown_fields_are_400_on_every_endpoint(
    endpoint: Endpoint, field: str, value: object
) -> None:
    error = refusal(endpoint, {**BASES[endpoint], field: value})
    assert error.code in ("unsupported_parameter", "unknown_parameter")
    assert (error.param or "").startswith(field)


@pytest.mark.parametrize("endpoint", [Endpoint.CHAT, Endpoint.COMPLETIONS, Endpoint.RESPONSES, Endpoint.EMBEDDINGS])
def test_f33_identity_and_priority_are_ours_whatever_the_client_sends(endpoint: Endpoint) -> None:
    theirs = {"priority": -(10**6), "request_id": "theirs", "cache_salt": "theirs", "session_id": "theirs"}
    if endpoint is Endpoint.EMBEDDINGS:
        del theirs["session_id"]
    body = send(endpoint, {**BASES[endpoint], **theirs}).body
    assert body["cache_salt"] == "salt-of-the-tenant"
    assert body["request_id"] == "req-ours"
    assert not body.keys() & {"priority", "session_id"}


def test_f33_a_messages_request_is_salted_too() -> None:
    assert send(Endpoint.MESSAGES, {**MESSAGE, "cache_salt": "theirs"}).body["cache_salt"] == "salt-of-the-tenant"


def test_f33_template_arguments_need_a_listing_and_stay_plain() -> None:
    context = RequestContext(4096, "s", "r", frozenset({"enable_thinking"}))
    body = chat_with(chat_template_kwargs={"enable_thinking": False})
    assert send(Endpoint.CHAT, body, context).body["chat_template_kwargs"] == {"enable_thinking": False}
    for kwargs in (
        {"chat_template": "{{ 1 }}"},
        {"enable_thinking": {"a": 1}},
        {"enable_thinking": "x" * 65},
        {"x": 1},
    ):
        error = refusal(Endpoint.CHAT, chat_with(chat_template_kwargs=kwargs), context)
        assert error.param == f"chat_template_kwargs.{next(iter(kwargs))}"


def test_f33_a_client_learns_the_name_it_may_have_meant() -> None:
    assert "'temperature'" in refusal(Endpoint.CHAT, chat_with(temprature=1)).message
    assert "structured_outputs" in refusal(Endpoint.CHAT, chat_with(guided_json={})).message
    assert refusal(Endpoint.CHAT, chat_with(zzz=1)).message == "Unknown parameter: 'zzz'."


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file", "video_url", "prompt_embeds", "image_embeds"])
def test_f33_media_parts_are_refused_by_models_of_text(kind: str) -> None:
    part = {"type": kind, kind: {"url": "http://169.254.169.254/latest/meta-data"}}
    error = refusal(Endpoint.CHAT, chat_with(messages=[{"role": "user", "content": [part]}]))
    assert (error.param, error.code) == ("messages[0].content[0].type", "unsupported_value")


def test_the_bodies_above_would_pass_without_their_fault() -> None:
    """Guards the rows above: none of them is refused for something else."""
    for endpoint, body in BASES.items():
        before = copy.deepcopy(body)
        assert send(endpoint, body).endpoint is endpoint
        assert body == before
