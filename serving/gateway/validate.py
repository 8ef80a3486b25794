"""The check of a request: a pure function from what a client sent to what the engine may get."""

import difflib
from typing import TYPE_CHECKING, cast

from serving.gateway import refusal
from serving.gateway.checks_prompt import num_prompts
from serving.gateway.endpoint import Endpoint
from serving.gateway.parameter import Action
from serving.gateway.parameters import FORMS
from serving.gateway.request import Draft, RequestContext, ValidRequest

if TYPE_CHECKING:
    from serving.config.limits import Limits

__all__ = ["RequestContext", "ValidRequest", "validate"]

_MAX_NAME_CHARS = 64
_CONTINUABLE = (Endpoint.CHAT, Endpoint.COMPLETIONS)
_OUTPUT_FIELDS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
_NOT_CONTINUABLE = (
    # State of the decoding that the tokens so far do not show, or counts from the start of the answer.
    "tools", "response_format", "structured_outputs", "echo",
    "frequency_penalty", "presence_penalty", "repetition_penalty", "repetition_detection", "return_token_ids",
    "return_tokens_as_token_ids", "truncate_prompt_tokens", "bad_words",
)  # fmt: skip
_NOT_CONTINUABLE_EVEN_0 = ("logprobs", "thinking_token_budget")
#: Where the engine is told what to make a grammar of; a plain value among them costs the replica a look.
_CONSTRAINTS = ("response_format", "structured_outputs", "text", "output_config")
_GENERATING = (Endpoint.CHAT, Endpoint.COMPLETIONS, Endpoint.RESPONSES, Endpoint.MESSAGES)
#: Names that clients send from habit, and what to send instead.
_HINTS = {
    "extra_body": "send the members of extra_body beside the other fields",
    "extra_headers": "send them as HTTP headers",
    "max_new_tokens": "send 'max_completion_tokens'",
    "guided_json": "send 'response_format' or 'structured_outputs'",
    "guided_choice": "send 'structured_outputs': {'choice': [...]}",
    "guided_regex": "send 'structured_outputs': {'regex': ...}, where the server allows it",
    "guided_grammar": "send 'structured_outputs': {'grammar': ...}, where the server allows it",
    "guided_decoding_backend": "the engine chooses it",
    "enable_thinking": "send it in 'chat_template_kwargs', where the model's config lists it",
    "output_format": "send 'output_config': {'format': ...}",
    "normalize": "send 'use_activation'",
}
_OURS = {
    endpoint: tuple((name, row.ours) for name, row in form.parameters.items() if row.ours is not None)
    for endpoint, form in FORMS.items()
}
_REQUIRED = {
    endpoint: tuple(name for name, row in form.parameters.items() if row.is_required)
    for endpoint, form in FORMS.items()
}


def validate(endpoint: Endpoint, body: dict[str, object], limits: "Limits", context: RequestContext) -> ValidRequest:
    """Check ``body`` against the parameter table. Raises BadRequest (and ContextLengthExceeded), which name the field.

    ``body`` is as ``json_body.parse`` gives it. It is not changed; what goes on may share parts with it.
    """
    form = FORMS[endpoint]
    sent: dict[str, object] = {}
    ignored: list[str] = []
    for name, value in body.items():
        parameter = form.parameters.get(name)
        if parameter is None:
            raise refusal.unknown(name[:_MAX_NAME_CHARS], _hint(endpoint, name))
        if value is None:
            continue
        value = parameter.check(value, name, limits)
        if parameter.is_sent:
            sent[name] = value
        elif parameter.action is Action.IGNORED:
            ignored.append(name)
    for name in _REQUIRED[endpoint]:
        if name not in sent:
            raise refusal.missing(name)
    draft = Draft(body, sent, limits, context)
    for rule in form.rules:
        rule(draft)
    for name, ours in _OURS[endpoint]:
        sent[name] = ours(context)
    return _request(endpoint, draft, tuple(ignored))


def _request(endpoint: Endpoint, draft: Draft, ignored: tuple[str, ...]) -> ValidRequest:
    sent = draft.sent
    stream = sent.get("stream") is True
    num_choices = cast(int, sent.get("n", 1)) * num_prompts(sent.get("prompt", ""))
    return ValidRequest(
        endpoint=endpoint,
        model=cast(str, sent["model"]),
        stream=stream,
        body=sent,
        max_output_tokens=_max_output_tokens(draft),
        is_bounded=any(name in sent for name in _OUTPUT_FIELDS),
        num_choices=num_choices,
        is_constrained=endpoint in _GENERATING and (draft.compiles_tools or any(map(sent.get, _CONSTRAINTS))),
        continuable=endpoint in _CONTINUABLE
        and num_choices == 1
        and not any(map(sent.get, _NOT_CONTINUABLE))
        and not any(_says_something(sent.get(name)) for name in _NOT_CONTINUABLE_EVEN_0),
        is_seeded=sent.get("seed") is not None and sent.get("temperature") != 0,
        is_batch=draft.asked.get("service_tier") == "flex",
        max_model_len=draft.context.max_model_len,
        ignored=ignored,
    )


def _says_something(value: object) -> bool:
    """Whether a field is set; 0 is something, False nothing."""
    return value is not None and value is not False


def _max_output_tokens(draft: Draft) -> int | None:
    for name in _OUTPUT_FIELDS:
        if name in draft.sent:
            return cast(int, draft.sent[name])
    return draft.limits.max_output_tokens


def _hint(endpoint: Endpoint, name: str) -> str:
    """What was probably meant; the nearest name among this endpoint's, if one is near."""
    if name in _HINTS:
        return f" Instead, {_HINTS[name]}."
    near = difflib.get_close_matches(name[:_MAX_NAME_CHARS], FORMS[endpoint].parameters, n=1, cutoff=0.75)
    return f" Did you mean '{near[0]}'?" if near else ""
