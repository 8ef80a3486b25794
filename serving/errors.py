"""Every way Ballast can fail, and what a client is told about each.

    BallastError
    ├── OperatorError              the person at the command line can mend it; printed in plain words
    │   ├── ConfigError            the config file is wrong (all problems at once)
    │   ├── MachineError           this machine cannot do what the config asks (memory, port, GPU, model path)
    │   └── StateError             the state folder or the key store cannot be used
    ├── ApiError                   an answer to an HTTP client; one subclass per row of ``ANSWERS``
    │   ├── BadRequest  ── InvalidJson, ContextLengthExceeded
    │   ├── Unauthenticated, ModelNotAllowed
    │   ├── NotFound    ── ModelNotFound
    │   ├── MethodNotAllowed, BodyTimeout, BodyTooLarge, UnsupportedMediaType, HeadersTooLarge, Quarantined
    │   ├── RateLimited, BudgetExhausted
    │   └── InternalError, Overloaded, EngineUnavailable, UpstreamTimeout
    └── ReplicaLost                the connection to a replica ended while a stream was open
        └── ReplicaSilent          it is open, and nothing came over it in time

``ANSWERS`` is the only place that maps an exception to (status, type, code, retryable); the HTTP contract's status
table is generated from it.
"""

from dataclasses import dataclass


class BallastError(Exception):
    """Root of everything Ballast raises on purpose."""


class OperatorError(BallastError):
    """Something the operator can mend. ``str(error)`` says what, where and what to do."""

    exit_code = 1


class ConfigError(OperatorError):
    """The config file is wrong. ``problems`` holds every finding, not only the first."""

    exit_code = 2

    def __init__(self, message: str, problems: tuple["Problem", ...] = ()) -> None:
        super().__init__(message)
        self.problems = problems


class MachineError(OperatorError):
    """This machine cannot do what the config asks of it."""

    exit_code = 3


class StateError(OperatorError):
    """The state folder, or something in it, cannot be used."""

    exit_code = 4


@dataclass(frozen=True)
class Problem:
    """One finding about a config: where it is, what stands there, why it is refused, and the nearest valid key or
    value.
    """

    path: str
    value: str
    reason: str
    suggestion: str | None = None


@dataclass(frozen=True)
class Answer:
    """What an HTTP client is told: status line, OpenAI error ``type`` and ``code``, and whether a retry can help."""

    status: int
    type: str
    code: str | None
    retryable: bool


class ApiError(BallastError):
    """An answer to an HTTP client.

    ``param`` names the offending field as a dotted path; ``code`` overrides the class's default code where one class
    has several; ``retry_after_s`` becomes ``Retry-After`` (and ``retry-after-ms``).
    """

    def __init__(
        self, message: str, *, param: str | None = None, code: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        self._code = code

    @property
    def answer(self) -> Answer:
        return ANSWERS[type(self)]

    @property
    def code(self) -> str | None:
        return self._code or self.answer.code


class BadRequest(ApiError):
    """The request is not one this server takes; the message says which field and why."""


class InvalidJson(BadRequest):
    """The body is not JSON, or not the JSON the contract allows (duplicate keys, NaN, lone surrogates, depth)."""


class ContextLengthExceeded(BadRequest):
    """Prompt plus requested output do not fit the model's context."""


class Unauthenticated(ApiError):
    """No key, or none that is valid."""


class ModelNotAllowed(ApiError):
    """The key is valid and may not use this model."""


class NotFound(ApiError):
    """No such route or object."""


class ModelNotFound(NotFound):
    """No model of this name or alias."""


class MethodNotAllowed(ApiError):
    """The route exists, the method does not."""


class BodyTimeout(ApiError):
    """The body did not arrive within the read deadline."""


class BodyTooLarge(ApiError):
    """The body is over ``limits.max_body_bytes``."""


class UnsupportedMediaType(ApiError):
    """A Content-Type or Content-Encoding that is not taken."""


class HeadersTooLarge(ApiError):
    """Too many headers, or too large ones."""


class Quarantined(ApiError):
    """Well-formed, and refused because engines died on it."""


class RateLimited(ApiError):
    """The caller is over its own limit."""


class BudgetExhausted(ApiError):
    """The caller's budget is spent; a retry cannot help."""


class InternalError(ApiError):
    """Our fault."""


class Overloaded(ApiError):
    """We have no capacity now."""


class EngineUnavailable(ApiError):
    """No replica of this model can take the request now, or the one that had it is gone."""


class UpstreamTimeout(ApiError):
    """The engine did not answer within the deadline."""


class ReplicaLost(BallastError):
    """The connection to a replica ended while a stream was open on it."""


class ReplicaSilent(ReplicaLost):
    """A replica sent nothing of an answer in time; another may."""


ANSWERS: dict[type[ApiError], Answer] = {
    BadRequest: Answer(400, "invalid_request_error", None, False),
    InvalidJson: Answer(400, "invalid_request_error", "invalid_json", False),
    ContextLengthExceeded: Answer(400, "invalid_request_error", "context_length_exceeded", False),
    Unauthenticated: Answer(401, "invalid_request_error", "invalid_api_key", False),
    ModelNotAllowed: Answer(403, "permission_error", "model_not_allowed", False),
    NotFound: Answer(404, "invalid_request_error", "not_found", False),
    ModelNotFound: Answer(404, "invalid_request_error", "model_not_found", False),
    MethodNotAllowed: Answer(405, "invalid_request_error", "method_not_allowed", False),
    BodyTimeout: Answer(408, "timeout", "request_timeout", True),
    BodyTooLarge: Answer(413, "invalid_request_error", "body_too_large", False),
    UnsupportedMediaType: Answer(415, "invalid_request_error", "unsupported_media_type", False),
    HeadersTooLarge: Answer(431, "invalid_request_error", "headers_too_large", False),
    Quarantined: Answer(422, "invalid_request_error", "request_quarantined", False),
    RateLimited: Answer(429, "rate_limit_error", "rate_limit_exceeded", True),
    BudgetExhausted: Answer(429, "insufficient_quota", "insufficient_quota", False),
    InternalError: Answer(500, "server_error", "internal_error", True),
    Overloaded: Answer(503, "service_unavailable_error", "server_is_overloaded", True),
    EngineUnavailable: Answer(503, "service_unavailable_error", "engine_unavailable", True),
    UpstreamTimeout: Answer(504, "timeout", "upstream_timeout", False),
}
