"""A request before and after its check."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from serving.gateway.endpoint import Endpoint

if TYPE_CHECKING:
    from serving.config.limits import Limits


@dataclass(frozen=True, slots=True)
class RequestContext:
    """What the gateway knows of a request beside its body. ``max_model_len`` in tokens; None: not known yet."""

    max_model_len: int | None
    cache_salt: str
    request_id: str
    chat_template_kwargs: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class ValidRequest:
    """A request that may go to an engine.

    ``body`` is the client's with our values over it, ready to be written; ``model`` is the name as asked.
    ``num_choices`` counts the answers to all prompts; ``max_output_tokens`` bounds each, None: only the context does.
    ``is_bounded``: by the client itself, and not by the server's own bound.
    ``continuable``: if the replica dies, another can go on from the tokens so far, and the client could not tell.
    ``is_seeded``: its tokens are drawn, from a seed of the client's: only a sampler that draws by place can go on.
    ``is_constrained``: the engine makes a grammar of something in it, which the replica tries in a sandbox first.
    ``is_batch``: the client is in no hurry (`service_tier` `flex`).
    ``max_model_len`` in tokens, prompt and output; None: not known yet.
    ``ignored`` names the fields that were dropped.
    """

    endpoint: Endpoint
    model: str
    stream: bool
    body: dict[str, object]
    max_output_tokens: int | None
    is_bounded: bool
    num_choices: int
    continuable: bool
    is_seeded: bool
    is_constrained: bool
    is_batch: bool
    max_model_len: int | None
    ignored: tuple[str, ...]


@dataclass(slots=True)
class Draft:
    """A request while it is checked: ``asked`` as it came, ``sent`` as it will go on.

    ``compiles_tools``: the engine makes a grammar of a tool's schema.
    """

    asked: dict[str, object]
    sent: dict[str, object]
    limits: "Limits"
    context: RequestContext
    compiles_tools: bool = False
