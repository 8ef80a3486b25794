"""The public surface: an exact table of method and path. What is not here is answered 404, whatever it looks like."""

import enum
from dataclasses import dataclass

from serving.errors import MethodNotAllowed, NotFound
from serving.gateway.endpoint import Endpoint
from serving.protocol.openai import Dialect


class Page(enum.Enum):
    """Routes that the gateway answers itself."""

    MODELS = "/v1/models"
    MODEL = "/v1/models/{id}"
    HEALTH = "/health"
    READY = "/ready"


@dataclass(frozen=True, slots=True)
class Route:
    """One entry of the table. ``path`` is the label in logs and metrics; ``argument`` is what stood for ``{id}``."""

    path: str
    target: Endpoint | Page
    dialect: Dialect = Dialect.OPENAI
    argument: str = ""


_DIALECTS = {
    Endpoint.RESPONSES: Dialect.RESPONSES,
    Endpoint.MESSAGES: Dialect.ANTHROPIC,
    Endpoint.COUNT_TOKENS: Dialect.ANTHROPIC,
}
_POST = {
    endpoint.value: Route(endpoint.value, endpoint, _DIALECTS.get(endpoint, Dialect.OPENAI)) for endpoint in Endpoint
}
_GET = {page.value: Route(page.value, page) for page in (Page.MODELS, Page.HEALTH, Page.READY)}
_POST_METHODS, _GET_METHODS = ("POST",), ("GET", "HEAD")
_MODEL_PREFIX = "/v1/models/"


def find_route(method: str, path: str) -> Route:
    """Raises NotFound, MethodNotAllowed."""
    route = _POST.get(path)
    if route is not None:
        return _require(method, _POST_METHODS, route)
    route = _GET.get(path)
    if route is None and path.startswith(_MODEL_PREFIX) and len(path) > len(_MODEL_PREFIX):
        route = Route(Page.MODEL.value, Page.MODEL, argument=path[len(_MODEL_PREFIX) :])
    if route is None:
        raise NotFound(f"unknown request URL: {method[:16]} {path[:128]}. Check the URL for typos.", code="unknown_url")
    return _require(method, _GET_METHODS, route)


def dialect_of(path: str) -> Dialect:
    """How errors on ``path`` look, also where the method is wrong."""
    route = _POST.get(path)
    return route.dialect if route else Dialect.OPENAI


def allowed_methods(path: str) -> tuple[str, ...]:
    """What the route at ``path`` takes; for the Allow header of a 405."""
    return _POST_METHODS if path in _POST else _GET_METHODS


def _require(method: str, allowed: tuple[str, ...], route: Route) -> Route:
    if method not in allowed:
        raise MethodNotAllowed(f"{route.path} takes {' or '.join(allowed)}, not {method[:16]}")
    return route
