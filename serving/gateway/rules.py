"""Rules that look at more than one field. Each takes the draft with every field checked on its own, and may rewrite it."""

from collections.abc import Callable
from typing import cast

from serving.errors import ContextLengthExceeded
from serving.gateway import refusal
from serving.gateway.checks import Boolean, Integer, Text, at_most
from serving.gateway.checks_prompt import num_prompts, num_tokens
from serving.gateway.checks_responses import LOGPROBS
from serving.gateway.checks_schema import Schema
from serving.gateway.request import Draft

Rule = Callable[[Draft], None]

_MAX_KWARG_CHARS = 64
_COMPILED = Schema(is_compiled=True)


def output_fits(field: str) -> Rule:
    """A rule: the output asked for in ``field`` (and token ids of the prompt, where they are known) fits the context."""

    def rule(draft: Draft) -> None:
        asked = cast("int | None", draft.sent.get(field))
        max_model_len = draft.context.max_model_len
        if asked is None or max_model_len is None:
            return
        prompt_tokens = max(num_tokens(draft.sent.get("prompt")), 1)
        if prompt_tokens + asked > max_model_len:
            raise ContextLengthExceeded(
                f"This model's maximum context length is {max_model_len} tokens. However, you requested {asked} output tokens "
                f"in '{field}', and the prompt has at least {prompt_tokens}. Please reduce one of them.",
                param=field,
            )

    return rule


def min_tokens_fit(draft: Draft) -> None:
    least = cast(int, draft.sent.get("min_tokens", 0))
    most = cast("int | None", draft.sent.get("max_completion_tokens", draft.sent.get("max_tokens")))
    if most is not None and least > most:
        raise refusal.too_large("min_tokens", least, most)


def one_output_cap(draft: Draft) -> None:
    """`max_tokens` is the old name of `max_completion_tokens`: the new one counts when both are there, as in the engine."""
    if "max_completion_tokens" in draft.sent:
        draft.sent.pop("max_tokens", None)


def stream_options_need_stream(draft: Draft) -> None:
    if draft.asked.get("stream_options") is not None and draft.sent.get("stream") is not True:
        raise refusal.invalid("stream_options", "it is only allowed when 'stream' is true")


def report_usage(draft: Draft) -> None:
    """Ask the engine for the usage of every stream; the relay hides it from clients that did not ask."""
    if draft.sent.get("stream") is True:
        options = cast("dict[str, object]", draft.sent.get("stream_options", {}))
        continuous = {"continuous_usage_stats": True} if options.get("continuous_usage_stats") else {}
        draft.sent["stream_options"] = {"include_usage": True, **(continuous if options.get("include_usage") else {})}
    else:
        draft.sent.pop("stream_options", None)


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
        check = {bool: Boolean(), int: Integer(-(2**31)), float: None}.get(type(value), Text(_MAX_KWARG_CHARS))
        if check is not None:
            check(value, path, draft.limits)


def prompts_times_n(draft: Draft) -> None:
    total = num_prompts(draft.sent["prompt"]) * cast(int, draft.sent.get("n", 1))
    if total > draft.limits.max_prompts:
        raise refusal.invalid("n", f"prompts times 'n' is {total}, at most {draft.limits.max_prompts} answers are made at once")


def best_of_is_n(draft: Draft) -> None:
    best_of = draft.asked.get("best_of")
    n = cast(int, draft.sent.get("n", 1))
    if isinstance(best_of, int) and best_of > n:
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

    ``nested``: where a tool and a choice keep their members (chat: ``function``). ``forcing``: choices that make a call certain.
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

    def _check_compiled(self, tools: list[dict[str, object]], draft: Draft, wanted: str | None, *, is_forced: bool) -> None:
        for index, tool in enumerate(tools):
            members = self._members(tool)
            if self.schema in members and (is_forced or members["name"] == wanted or members.get("strict") is True):
                path = f"tools[{index}].{self.nested}.{self.schema}" if self.nested else f"tools[{index}].{self.schema}"
                _COMPILED(members[self.schema], path, draft.limits)

    def _members(self, holder: dict[str, object]) -> dict[str, object]:
        return cast("dict[str, object]", holder[self.nested]) if self.nested else holder

    def _named(self, choice: object) -> str | None:
        if not isinstance(choice, dict):
            return None
        return cast("str | None", self._members(choice).get("name"))
