"""Rules that look at more than one field. Each takes a draft whose fields passed on their own, and may rewrite it."""

from collections.abc import Callable
from typing import cast

import orjson

from serving.errors import ContextLengthExceeded
from serving.gateway import refusal
from serving.gateway.checks import Text
from serving.gateway.checks_prompt import num_prompts, num_tokens
from serving.gateway.checks_responses import LOGPROBS
from serving.gateway.checks_schema import Schema
from serving.gateway.request import Draft

Rule = Callable[[Draft], None]

_MAX_KWARG_CHARS = 64
_COMPILED = Schema(is_compiled=True)


def output_fits(field: str) -> Rule:
    """A rule: the output asked for in ``field``, after the prompt where its tokens are known, fits the context."""

    def rule(draft: Draft) -> None:
        asked = cast("int | None", draft.sent.get(field))
        max_model_len = draft.context.max_model_len
        if asked is None or max_model_len is None:
            return
        prompt_tokens = max(num_tokens(draft.sent.get("prompt")), 1)
        if prompt_tokens + asked > max_model_len:
            raise ContextLengthExceeded(
                f"This model's maximum context length is {max_model_len} tokens. However, you requested {asked} output "
                f"tokens in '{field}', and the prompt has at least {prompt_tokens}. Please reduce one of them.",
                param=field,
            )

    return rule


def min_tokens_fit(draft: Draft) -> None:
    least = cast(int, draft.sent.get("min_tokens", 0))
    most = cast("int | None", draft.sent.get("max_completion_tokens", draft.sent.get("max_tokens")))
    if most is not None and least > most:
        raise refusal.too_large("min_tokens", least, most)


def one_output_cap(draft: Draft) -> None:
    """`max_tokens` is the old name of `max_completion_tokens`: where both are there, the new one counts."""
    if "max_completion_tokens" in draft.sent:
        draft.sent.pop("max_tokens", None)


def stream_options_need_stream(draft: Draft) -> None:
    if draft.asked.get("stream_options") is not None and draft.sent.get("stream") is not True:
        raise refusal.invalid("stream_options", "it is only allowed when 'stream' is true")


def engine_stream_options(draft: Draft) -> None:
    """What is sent on of `stream_options`: nothing where nothing is streamed, and no padding, which the engine does
    not have.
    """
    options = draft.sent.get("stream_options")
    if draft.sent.get("stream") is not True:
        draft.sent.pop("stream_options", None)
    elif isinstance(options, dict):
        draft.sent["stream_options"] = {name: value for name, value in options.items() if name != "include_obfuscation"}


def logprobs_asked(draft: Draft) -> None:
    for field in ("top_logprobs", "logprob_token_ids"):
        if draft.sent.get(field) and draft.sent.get("logprobs") is not True:
            raise refusal.invalid(field, "it needs 'logprobs' to be true")
    if draft.sent.get("echo") and draft.sent.get("logprobs"):
        raise refusal.unsupported("echo", "together with 'logprobs' it would return the prompt's logprobs")


def response_logprobs_asked(draft: Draft) -> None:
    if draft.sent.get("top_logprobs") and LOGPROBS not in cast("list[str]", draft.sent.get("include", [])):
        raise refusal.invalid("top_logprobs", f"it needs '{LOGPROBS}' in 'include'")


def one_output_shape(draft: Draft) -> None:
    form = cast("dict[str, object]", draft.sent.get("response_format", {}))
    text = cast("dict[str, dict[str, object]]", draft.sent.get("text", {}))
    form = form or text.get("format", {})
    if "structured_outputs" in draft.sent and form.get("type", "text") != "text":
        raise refusal.invalid("structured_outputs", "the answer's format is asked for twice")


def one_end_of_chat(draft: Draft) -> None:
    if draft.sent.get("continue_final_message") and draft.sent.get("add_generation_prompt", False):
        raise refusal.invalid("continue_final_message", "it cannot be combined with 'add_generation_prompt'")


def template_kwargs_listed(draft: Draft) -> None:
    """Only what the operator listed for this model reaches its chat template, and only plain values."""
    kwargs = cast("dict[str, object] | None", draft.sent.get("chat_template_kwargs"))
    for name, value in (kwargs or {}).items():
        path = f"chat_template_kwargs.{name[:64]}"
        if name not in draft.context.chat_template_kwargs:
            raise refusal.unsupported(path, "the model's config does not list it (models[].chat_template_kwargs)")
        if type(value) not in (bool, int, float):
            Text(_MAX_KWARG_CHARS)(value, path, draft.limits)


def prompts_times_n(draft: Draft) -> None:
    total = num_prompts(draft.sent["prompt"]) * cast(int, draft.sent.get("n", 1))
    most = draft.limits.max_prompts
    if total > most:
        raise refusal.invalid("n", f"prompts times 'n' is {total}, and at most {most} answers are made at once")


def best_of_is_n(draft: Draft) -> None:
    best_of = draft.asked.get("best_of")
    n = cast(int, draft.sent.get("n", 1))
    if isinstance(best_of, int | float) and best_of > n:
        raise refusal.invalid("best_of", f"only as many answers are made as are returned ('n' is {n})")


def output_unless_echo(draft: Draft) -> None:
    """No output at all makes sense only to have the prompt scored."""
    if draft.sent.get("max_tokens") == 0 and draft.sent.get("echo") is not True:
        raise refusal.too_small("max_tokens", 0, 1)


def one_prompt_form(draft: Draft) -> None:
    """/tokenize takes a prompt or a conversation."""
    if ("prompt" in draft.sent) == ("messages" in draft.sent):
        if "prompt" in draft.sent:
            raise refusal.invalid("prompt", "it cannot be combined with 'messages'")
        raise refusal.missing("prompt")


def n_fits_temperature(draft: Draft) -> None:
    """Greedy answers are all the same, and the engine refuses more than one."""
    if cast(int, draft.sent.get("n", 1)) > 1 and draft.sent.get("temperature") == 0:
        raise refusal.invalid("n", "it must be 1 when 'temperature' is 0")


class ToolsAgree:
    """The choice names a tool that is there; schemas the engine will compile are cheap to compile.

    ``schema`` is the member with a tool's schema; ``nested`` where a tool and a choice keep their members (chat:
    ``function``); ``forcing`` are the choices that make a call certain.
    """

    def __init__(self, schema: str, nested: str | None = None, forcing: tuple[str, ...] = ("required",)) -> None:
        self.schema = schema
        self.nested = nested
        self.forcing = forcing

    def __call__(self, draft: Draft) -> None:
        choice = draft.sent.get("tool_choice")
        tools = cast("list[dict[str, object]]", draft.sent.get("tools", []))
        if not tools:
            draft.sent.pop("tools", None)
            self._without_tools(choice)
            draft.sent.pop("tool_choice", None)
            draft.sent.pop("parallel_tool_calls", None)
            return
        wanted = self._named(choice)
        if wanted is not None and wanted not in [self._members(tool)["name"] for tool in tools]:
            raise refusal.invalid("tool_choice", "it names a tool that is not in 'tools'")
        word = choice.get("type") if isinstance(choice, dict) else choice
        self._check_compiled(tools, draft, wanted, is_forced=word in self.forcing)

    def _without_tools(self, choice: object) -> None:
        word = choice.get("type") if isinstance(choice, dict) else choice
        if word not in (None, "none", "auto"):
            raise refusal.invalid("tool_choice", "it is only allowed when 'tools' are given")

    def _check_compiled(
        self, tools: list[dict[str, object]], draft: Draft, wanted: str | None, *, is_forced: bool
    ) -> None:
        num_bytes = 0
        # Where one tool is strict, vLLM makes one grammar of all that do not say that they are not.
        is_strict = any(self._members(tool).get("strict") is True for tool in tools)
        for index, tool in enumerate(tools):
            members = self._members(tool)
            is_compiled = is_forced or members["name"] == wanted or (is_strict and members.get("strict") is not False)
            if is_compiled and self.schema in members:
                draft.compiles_tools = True
                path = f"tools[{index}].{self.nested}.{self.schema}" if self.nested else f"tools[{index}].{self.schema}"
                _COMPILED(members[self.schema], path, draft.limits)
                num_bytes += len(orjson.dumps(members[self.schema]))
        if num_bytes > (most := draft.limits.max_schema_bytes):
            raise refusal.invalid(
                "tools", f"schemas to compile have {num_bytes} bytes together, at most {most} are taken"
            )

    def _members(self, holder: dict[str, object]) -> dict[str, object]:
        return cast("dict[str, object]", holder[self.nested]) if self.nested else holder

    def _named(self, choice: object) -> str | None:
        if not isinstance(choice, dict):
            return None
        return cast("str | None", self._members(choice).get("name"))
