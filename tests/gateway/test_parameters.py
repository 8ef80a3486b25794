"""The parameter table is whole: every field of the engine and the official clients has a row, and none is made up."""

import json
import typing
import warnings
from pathlib import Path

import pytest
from anthropic.types import message_count_tokens_params, message_create_params
from anthropic.types.beta import message_create_params as beta_message_create_params
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params

from serving.config.limits import Limits
from serving.gateway import parameters_docs
from serving.gateway.checks import IfAllowed, Integer, Text, at_most, described
from serving.gateway.checks_schema import Schema
from serving.gateway.endpoint import Endpoint
from serving.gateway.parameter import Action
from serving.gateway.parameters import FORMS

ROOT = Path(__file__).parents[2]
OPENAI_DOCUMENT = ROOT.parent / "shared" / "reference" / "openai-openapi-cut.json"

Fields = dict[Endpoint, set[str]]


def client_fields() -> Fields:
    """What the official clients can send, by the types of their parameters."""
    typed = {
        Endpoint.CHAT: [chat_create_params.CompletionCreateParamsBase],
        Endpoint.COMPLETIONS: [completion_create_params.CompletionCreateParamsBase],
        Endpoint.RESPONSES: [response_create_params.ResponseCreateParamsBase],
        Endpoint.EMBEDDINGS: [embedding_create_params.EmbeddingCreateParams],
        Endpoint.MESSAGES: [
            message_create_params.MessageCreateParamsBase,
            beta_message_create_params.MessageCreateParamsBase,
        ],
        Endpoint.COUNT_TOKENS: [message_count_tokens_params.MessageCountTokensParams],
    }
    fields = {endpoint: {name for kind in kinds for name in kind.__annotations__} for endpoint, kinds in typed.items()}
    for endpoint in (Endpoint.CHAT, Endpoint.COMPLETIONS, Endpoint.RESPONSES, Endpoint.MESSAGES):
        fields[endpoint].add("stream")
    return fields


def engine_fields() -> Fields:
    """What vLLM's request models have."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from vllm.entrypoints.anthropic.protocol import AnthropicCountTokensRequest, AnthropicMessagesRequest
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
        from vllm.entrypoints.openai.completion.protocol import CompletionRequest
        from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
        from vllm.entrypoints.pooling.embed.protocol import EmbeddingChatRequest, EmbeddingCompletionRequest
        from vllm.entrypoints.serve.tokenize.protocol import (
            DetokenizeRequest,
            TokenizeChatRequest,
            TokenizeCompletionRequest,
        )
    models = {
        Endpoint.CHAT: [ChatCompletionRequest],
        Endpoint.COMPLETIONS: [CompletionRequest],
        Endpoint.RESPONSES: [ResponsesRequest],
        Endpoint.MESSAGES: [AnthropicMessagesRequest],
        Endpoint.COUNT_TOKENS: [AnthropicCountTokensRequest],
        Endpoint.EMBEDDINGS: [EmbeddingCompletionRequest, EmbeddingChatRequest],
        Endpoint.TOKENIZE: [TokenizeCompletionRequest, TokenizeChatRequest],
        Endpoint.DETOKENIZE: [DetokenizeRequest],
    }
    return {endpoint: {name for kind in kinds for name in kind.model_fields} for endpoint, kinds in models.items()}


def document_fields() -> Fields:
    """What the public OpenAI document lists; nothing where the document is not at hand."""
    if not OPENAI_DOCUMENT.exists():
        return {}
    document = json.loads(OPENAI_DOCUMENT.read_text())
    schemas = document["components"]["schemas"]

    def properties(schema: dict[str, typing.Any]) -> set[str]:
        if "$ref" in schema:
            return properties(schemas[schema["$ref"].rsplit("/", 1)[1]])
        inherited = [properties(part) for part in schema.get("allOf", [])]
        return set(schema.get("properties", {})).union(*inherited)

    paths = {
        Endpoint.CHAT: "/chat/completions",
        Endpoint.COMPLETIONS: "/completions",
        Endpoint.RESPONSES: "/responses",
        Endpoint.EMBEDDINGS: "/embeddings",
    }
    return {
        endpoint: properties(document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"])
        for endpoint, path in paths.items()
    }


def unclassified(fields: Fields) -> Fields:
    missing = {endpoint: names - set(FORMS[endpoint].parameters) for endpoint, names in fields.items()}
    return {endpoint: names for endpoint, names in missing.items() if names}


def test_every_field_of_the_official_clients_has_a_row() -> None:
    assert unclassified(client_fields()) == {}


def test_every_field_of_the_openai_document_has_a_row() -> None:
    if not OPENAI_DOCUMENT.exists():
        pytest.skip(
            "the public OpenAI document is not beside this checkout (../shared/reference/openai-openapi-cut.json)"
        )
    assert unclassified(document_fields()) == {}


@pytest.mark.engine
def test_every_field_of_the_engine_has_a_row() -> None:
    """Fails after an upgrade of vLLM until somebody has decided what the new field may do."""
    assert unclassified(engine_fields()) == {}


@pytest.mark.engine
def test_every_row_names_a_field_that_somebody_has() -> None:
    """Fails when a field has gone: its row would promise something."""
    known = [engine_fields(), client_fields(), document_fields()]
    made_up = {
        endpoint: set(form.parameters).difference(*(fields.get(endpoint, set()) for fields in known))
        for endpoint, form in FORMS.items()
    }
    assert {endpoint: names for endpoint, names in made_up.items() if names} == {}


def test_every_row_that_is_not_simply_passed_says_why() -> None:
    for form in FORMS.values():
        for name, parameter in form.parameters.items():
            is_plain = parameter.action in (Action.PASSED, Action.CAPPED)
            assert is_plain or parameter.reason, name
            assert parameter.action is Action.OVERWRITTEN or described(parameter.check), name


def test_every_named_limit_is_one_of_the_config() -> None:
    page = parameters_docs.render()
    names = {word.split("`")[0] for word in page.split("`limits.")[1:]}
    assert {name.rstrip("*_") for name in names} - {"max_schema"} <= set(Limits.model_fields)


def test_checks_describe_themselves_with_their_bounds() -> None:
    assert str(IfAllowed("allow_regex", Text("max_pattern_chars"))) == (
        "string, at most `limits.max_pattern_chars` characters; needs `limits.allow_regex`"
    )
    assert "JSON schema" in str(Schema(is_compiled=True))


def test_a_limit_of_null_is_no_limit() -> None:
    assert at_most("max_output_tokens", Limits()) == 2**31 - 1
    assert at_most("max_n", Limits(max_n=3)) == 3
    assert str(Integer(1, "max_n")) == "integer, 1 to `limits.max_n`"


def test_the_reference_page_is_in_step_with_the_table() -> None:
    assert (ROOT / parameters_docs.PAGE).read_text() == parameters_docs.render(), (
        "docs/reference/parameters.md is out of step: run `python -m serving.gateway.parameters_docs`"
    )
