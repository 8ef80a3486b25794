"""What a good request becomes, what a bad one is told, and that nothing but ApiError ever comes out."""

import contextlib
import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.config.limits import Limits
from serving.errors import ApiError, BadRequest
from serving.gateway.endpoint import Endpoint
from serving.gateway.json_body import parse, serialise
from serving.gateway.parameter import Action
from serving.gateway.parameters import FORMS
from serving.gateway.validate import RequestContext, ValidRequest, validate

Fields = dict[str, object]

LIMITS = Limits()
CONTEXT = RequestContext(max_model_len=4096, cache_salt="salt", request_id="req-1")
USER: Fields = {"role": "user", "content": "Hi"}
MESSAGES: list[object] = [USER]
TOOL: Fields = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALL: Fields = {"id": "call-1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
BASES: dict[Endpoint, Fields] = {
    Endpoint.CHAT: {"model": "m", "messages": MESSAGES},
    Endpoint.COMPLETIONS: {"model": "m", "prompt": "Hi"},
    Endpoint.RESPONSES: {"model": "m", "input": "Hi"},
    Endpoint.MESSAGES: {"model": "m", "messages": MESSAGES, "max_tokens": 16},
    Endpoint.COUNT_TOKENS: {"model": "m", "messages": MESSAGES},
    Endpoint.EMBEDDINGS: {"model": "m", "input": "Hi"},
    Endpoint.TOKENIZE: {"model": "m", "prompt": "Hi"},
    Endpoint.DETOKENIZE: {"model": "m", "tokens": [1, 2]},
}


def send(endpoint: Endpoint, **fields: object) -> ValidRequest:
    body = {**BASES[endpoint], **fields}
    return validate(endpoint, parse(json.dumps(body).encode(), LIMITS), LIMITS, CONTEXT)


def chat(*messages: object, **fields: object) -> ValidRequest:
    return send(Endpoint.CHAT, messages=list(messages) or MESSAGES, **fields)


def refused(endpoint: Endpoint, **fields: object) -> tuple[str | None, str | None]:
    """Param and code of the refusal."""
    with pytest.raises(BadRequest) as caught:
        send(endpoint, **fields)
    return caught.value.param, caught.value.code


# ------------------------------------------------------------------------------------------------------- what goes on


@pytest.mark.parametrize("endpoint", Endpoint)
def test_the_smallest_request_passes(endpoint: Endpoint) -> None:
    request = send(endpoint)
    assert (request.endpoint, request.model, request.stream, request.ignored) == (endpoint, "m", False, ())
    assert request.num_choices == 1
    assert BASES[endpoint].items() <= request.body.items()


@pytest.mark.parametrize("endpoint", Endpoint)
def test_what_goes_on_would_pass_again_unchanged(endpoint: Endpoint) -> None:
    first = send(endpoint)
    second = validate(endpoint, parse(serialise(first.body), LIMITS), LIMITS, CONTEXT)
    assert second.body == first.body


def test_the_clients_body_is_not_changed() -> None:
    body: Fields = {"model": "m", "messages": [{**USER, "cache_control": {}}], "stream": True, "user": "u", "n": None}
    before = copy.deepcopy(body)
    validate(Endpoint.CHAT, body, LIMITS, CONTEXT)
    assert body == before


@pytest.mark.parametrize("endpoint", Endpoint)
def test_null_is_absent_for_every_field_that_may_be_absent(endpoint: Endpoint) -> None:
    optional = {name: None for name, row in FORMS[endpoint].parameters.items() if name not in BASES[endpoint]}
    assert send(endpoint, **optional).body == send(endpoint).body


@pytest.mark.parametrize("endpoint", Endpoint)
def test_null_for_a_required_field_is_a_missing_field(endpoint: Endpoint) -> None:
    for name in BASES[endpoint]:
        param, code = refused(endpoint, **{name: None})
        assert (param, code) == (name, "missing_required_parameter")


def test_ignored_fields_are_dropped_and_named() -> None:
    fields = {
        "user": "u", "metadata": {"a": "b"}, "store": True, "service_tier": "priority", "verbosity": "low",
        "safety_identifier": "x", "prompt_cache_key": "k", "modalities": ["text"],
        "prediction": {"type": "content", "content": "x"},
    }  # fmt: skip
    request = chat(**fields)
    assert set(request.ignored) == set(fields)
    assert not request.body.keys() & set(fields)


def test_a_field_that_is_ignored_is_checked_all_the_same() -> None:
    assert refused(Endpoint.CHAT, user=7) == ("user", "invalid_type")
    assert refused(Endpoint.CHAT, metadata={str(i): "x" for i in range(17)}) == ("metadata", "object_above_max_length")
    assert refused(Endpoint.CHAT, metadata={"k": 1}) == ("metadata.k", "invalid_type")
    assert refused(Endpoint.CHAT, metadata={"k" * 65: "x"}) == ("metadata", "invalid_value")
    assert refused(Endpoint.CHAT, modalities=["text", "audio"])[0] == "modalities"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("audio", {"voice": "x", "format": "wav"}),
        ("web_search_options", {}),
        ("moderation", {}),
        ("functions", [{"name": "f"}]),
        ("function_call", {"name": "f"}),
    ],
)
def test_what_is_not_served_is_refused_not_dropped(field: str, value: object) -> None:
    assert refused(Endpoint.CHAT, **{field: value}) == (field, "unsupported_parameter")


def test_a_refused_field_may_say_no() -> None:
    body = chat(use_beam_search=False, return_prompt_text=False, functions=[]).body
    assert not body.keys() & {"use_beam_search", "return_prompt_text", "functions"}
    assert refused(Endpoint.CHAT, use_beam_search=0) == ("use_beam_search", "unsupported_parameter")


def test_stream_options_reach_the_engine_as_asked_but_for_padding() -> None:
    for options in (
        {"include_usage": True},
        {"include_usage": False},
        {"include_usage": True, "continuous_usage_stats": True},
    ):
        assert chat(stream=True, stream_options=options).body["stream_options"] == options
    assert "stream_options" not in chat(stream=True).body
    assert "stream_options" not in chat().body
    assert "include_obfuscation" not in str(chat(stream=True, stream_options={"include_obfuscation": True}).body)
    assert refused(Endpoint.CHAT, stream_options={"include_usage": True})[0] == "stream_options"
    assert refused(Endpoint.CHAT, stream=True, stream_options={"usage": True}) == (
        "stream_options.usage",
        "unknown_parameter",
    )


def test_whole_floats_are_integers_and_go_on_as_such() -> None:
    assert chat(max_tokens=16.0).body["max_tokens"] == 16
    assert type(chat(max_tokens=16.0).body["max_tokens"]) is int
    assert refused(Endpoint.CHAT, seed=1e17) == ("seed", "invalid_value")


def test_the_new_name_of_max_tokens_wins() -> None:
    request = chat(max_tokens=10, max_completion_tokens=20)
    assert request.max_output_tokens == 20
    assert "max_tokens" not in request.body


def test_choices_are_counted_over_all_prompts() -> None:
    assert send(Endpoint.COMPLETIONS, prompt=["a", "b"], n=3).num_choices == 6
    assert send(Endpoint.COMPLETIONS, prompt=[[1], [2, 3]]).num_choices == 2
    assert send(Endpoint.COMPLETIONS, prompt=[1, 2, 3], n=2).num_choices == 2
    assert chat(n=2, temperature=0.5).num_choices == 2


def test_a_completion_without_output_is_for_scoring_only() -> None:
    assert send(Endpoint.COMPLETIONS, max_tokens=0, echo=True, logprobs=1).max_output_tokens == 0
    assert refused(Endpoint.COMPLETIONS, max_tokens=0) == ("max_tokens", "integer_below_min_value")


def test_best_of_may_say_what_n_says() -> None:
    assert "best_of" not in send(Endpoint.COMPLETIONS, best_of=2, n=2).body


def test_what_is_drawn_from_a_seed_is_seeded() -> None:
    assert chat(seed=1).is_seeded
    assert chat(seed=0, temperature=0.7).is_seeded
    for fields in ({}, {"seed": None}, {"seed": 1, "temperature": 0}, {"temperature": 0.7}):
        assert not chat(**fields).is_seeded, fields


def test_only_plain_sampling_is_continuable() -> None:
    assert chat(temperature=0.7, max_tokens=5, stop="x", stream=True).continuable
    assert chat(seed=1, temperature=0.7).continuable
    assert send(Endpoint.COMPLETIONS).continuable
    for fields in (
        {"n": 2}, {"logprobs": True}, {"tools": [TOOL]}, {"response_format": {"type": "json_object"}},
        {"frequency_penalty": 0.5}, {"structured_outputs": {"choice": ["a"]}},
    ):  # fmt: skip
        assert not chat(**fields).continuable, fields
    assert not send(Endpoint.COMPLETIONS, prompt=["a", "b"]).continuable
    assert not send(Endpoint.COMPLETIONS, echo=True).continuable
    assert not send(Endpoint.COMPLETIONS, logprobs=0).continuable, "0 asks for the token's own"
    assert chat(logprobs=False).continuable
    assert not send(Endpoint.RESPONSES).continuable


# ------------------------------------------------------------------------------------------------------------ messages


@pytest.mark.parametrize(
    "message",
    [
        {"role": "system", "content": "x"},
        {"role": "developer", "content": [{"type": "text", "text": "x"}]},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "ann"},
        {"role": "assistant", "content": ""},
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        {"role": "tool", "content": "42", "tool_call_id": "call-1"},
        {"role": "assistant", "content": "x", "reasoning": "because"},
    ],
)
def test_good_messages_pass_unchanged(message: Fields) -> None:
    assert chat(message).body["messages"] == [message]


def test_a_message_handed_back_as_the_client_library_dumps_it_passes() -> None:
    dumped: Fields = {
        "role": "assistant", "content": None, "refusal": None, "annotations": [], "audio": None, "function_call": None,
        "tool_calls": [{**CALL, "index": 0}], "reasoning": None,
    }  # fmt: skip
    assert chat(dumped).body["messages"] == [{"role": "assistant", "tool_calls": [{**CALL, "index": 0}]}]
    empty = {"role": "assistant", "content": "x", "tool_calls": []}
    assert chat(empty).body["messages"] == [{"role": "assistant", "content": "x"}]


def test_members_that_nobody_reads_are_dropped_from_messages_and_parts() -> None:
    part = {"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}, "uuid": "media"}
    message = {"role": "user", "content": [part], "tools": [{"x": 1}], "prefix": True}
    assert chat(message).body["messages"] == [{"role": "user", "content": [{"type": "text", "text": "x"}]}]


@pytest.mark.parametrize(
    ("message", "param", "code"),
    [
        (7, "messages[1]", "invalid_type"),
        ({"content": "x"}, "messages[1].role", "missing_required_parameter"),
        ({"role": "ai", "content": "x"}, "messages[1].role", "invalid_value"),
        ({"role": 7, "content": "x"}, "messages[1].role", "invalid_type"),
        ({"role": ["user"], "content": "x"}, "messages[1].role", "invalid_type"),
        ({"role": "function", "name": "f", "content": "x"}, "messages[1].role", "unsupported_value"),
        ({"role": "user"}, "messages[1].content", "missing_required_parameter"),
        ({"role": "user", "content": None}, "messages[1].content", "missing_required_parameter"),
        ({"role": "user", "content": 3}, "messages[1].content", "invalid_type"),
        ({"role": "user", "content": {"type": "text"}}, "messages[1].content", "invalid_type"),
        ({"role": "user", "content": []}, "messages[1].content", "empty_array"),
        ({"role": "user", "content": ["x"]}, "messages[1].content[0]", "invalid_type"),
        ({"role": "user", "content": [{"text": "x"}]}, "messages[1].content[0].type", "missing_required_parameter"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[1].content[0].text", "missing_required_parameter"),
        ({"role": "user", "content": [{"type": "text", "text": 1}]}, "messages[1].content[0].text", "invalid_type"),
        ({"role": "user", "content": [{"type": "odd"}]}, "messages[1].content[0].type", "invalid_value"),
        ({"role": "user", "content": [{"type": []}]}, "messages[1].content[0].type", "invalid_type"),
        ({"role": "assistant"}, "messages[1].content", "missing_required_parameter"),
        ({"role": "assistant", "audio": {"id": "a"}}, "messages[1].audio", "unsupported_parameter"),
        ({"role": "assistant", "function_call": {}}, "messages[1].function_call", "unsupported_parameter"),
        ({"role": "tool", "content": "x"}, "messages[1].tool_call_id", "missing_required_parameter"),
        (
            {"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "f", "arguments": {}}}]},
            "messages[1].tool_calls[0].function.arguments",
            "invalid_type",
        ),
        (
            {"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "f", "arguments": "[" * 1000}}]},
            "messages[1].tool_calls[0].function.arguments",
            "invalid_value",
        ),
        (
            {"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "f", "arguments": '["]",' * 1000}}]},
            "messages[1].tool_calls[0].function.arguments",
            "invalid_value",
        ),
        (
            {"role": "assistant", "tool_calls": [{"type": "custom", "id": "c", "custom": {}}]},
            "messages[1].tool_calls[0].type",
            "unsupported_value",
        ),
    ],
)
def test_a_bad_message_is_refused_at_its_place(message: object, param: str, code: str) -> None:
    assert refused(Endpoint.CHAT, messages=[USER, message]) == (param, code)


def test_conversations_are_bounded() -> None:
    assert refused(Endpoint.CHAT, messages=[]) == ("messages", "empty_array")
    assert refused(Endpoint.CHAT, messages=[USER] * 2049) == ("messages", "array_above_max_length")
    assert refused(Endpoint.CHAT, messages="Hi") == ("messages", "invalid_type")


def test_shallow_arguments_with_many_brackets_pass() -> None:
    for arguments in ({"a": [[]] * 500}, {"code": "[" * 500}, {"code": '["\\' * 500}, nested_list(64)):
        call = {**CALL, "function": {"name": "f", "arguments": json.dumps(arguments)}}
        message = {"role": "assistant", "tool_calls": [call]}
        assert chat(message).body["messages"] == [message]


@pytest.mark.parametrize("arguments", ["[[1], " * 60 + "cut off", "{" * 60 + "[" * 4, "]" * 100 + "[]" * 100])
def test_arguments_that_a_model_broke_off_do_not_end_the_conversation(arguments: str) -> None:
    message = {"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "f", "arguments": arguments}}]}
    assert chat(message).body["messages"] == [message]


@pytest.mark.parametrize("arguments", ["[" * 65, "[" * 65 + "]" * 65, '["]",' * 65, '{"a":' * 65 + "1" + "}" * 65])
def test_arguments_deeper_than_the_engines_parser_can_go_are_refused(arguments: str) -> None:
    call = {**CALL, "function": {"name": "f", "arguments": arguments}}
    param, _ = refused(Endpoint.CHAT, messages=[{"role": "assistant", "tool_calls": [call]}])
    assert param == "messages[0].tool_calls[0].function.arguments"


def nested_list(depth: int) -> list[object]:
    return [nested_list(depth - 1)] if depth > 1 else []


# --------------------------------------------------------------------------------------------------------------- tools


def test_a_choice_among_no_tools_is_nothing() -> None:
    body = chat(tools=[], tool_choice="auto", parallel_tool_calls=False).body
    assert not body.keys() & {"tools", "tool_choice", "parallel_tool_calls"}
    assert refused(Endpoint.CHAT, tool_choice="required") == ("tool_choice", "invalid_value")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [TOOL] * 129}, "tools"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "f" * 129}}]}, "tools[0].function.name"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]},
            "tools[0].function.parameters",
        ),
        ({"tools": [TOOL], "tool_choice": "any"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function"}}, "tool_choice.function"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools"}}, "tool_choice.type"),
        ({"tools": [TOOL], "tool_choice": ["auto"]}, "tool_choice"),
    ],
)
def test_bad_tools_and_choices_are_refused(fields: Fields, param: str) -> None:
    assert refused(Endpoint.CHAT, **fields)[0] == param


# ------------------------------------------------------------------------------------------------- the whole, and speed

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from("type role content text function name schema json_schema format tool_calls id".split()),
            inner,
        )
    ),
    max_leaves=12,
)


@given(st.sampled_from(Endpoint), st.data())
def test_any_value_in_any_field_passes_or_is_an_api_error(endpoint: Endpoint, data: st.DataObject) -> None:
    names = st.sampled_from(sorted(FORMS[endpoint].parameters))
    fields = data.draw(st.dictionaries(names, JSON, max_size=4))
    with contextlib.suppress(ApiError):
        request = validate(endpoint, {**BASES[endpoint], **fields}, LIMITS, CONTEXT)
        sent = {name for name, row in FORMS[endpoint].parameters.items() if row.is_sent or row.ours}
        assert set(request.body) <= sent
        assert not any(FORMS[endpoint].parameters[name].action is Action.REFUSED for name in request.body)
        serialise(request.body)


@given(st.sampled_from(Endpoint), st.dictionaries(st.text(max_size=8), JSON, max_size=4))
def test_any_object_passes_or_is_an_api_error(endpoint: Endpoint, body: Fields) -> None:
    with contextlib.suppress(ApiError):
        validate(endpoint, body, LIMITS, CONTEXT)
