"""The sentences in which a request is refused: OpenAI's wording and codes, so that clients that match on them work.

Every function returns the exception for the caller to raise. A client's own value is shown only where it is a number or
a short word, never where it could be part of a prompt: messages reach logs.
"""

from serving.errors import BadRequest

_NAMES: dict[type, str] = {
    dict: "an object",
    list: "an array",
    str: "a string",
    bool: "a boolean",
    int: "an integer",
    float: "a decimal number",
    type(None): "null",
}
_SHOWN_CHARS = 40
_MAX_FIGURE = 10**20


def shown(word: str) -> str:
    """``word`` as it may appear in a message: itself, if short."""
    return f"'{word}'" if len(word) <= _SHOWN_CHARS and word.isprintable() else "a longer string"


def wrong_type(path: str, expected: str, value: object) -> BadRequest:
    return BadRequest(
        f"Invalid type for '{path}': expected {expected}, but got {_NAMES[type(value)]} instead.",
        param=path,
        code="invalid_type",
    )


def missing(path: str) -> BadRequest:
    return BadRequest(f"Missing required parameter: '{path}'.", param=path, code="missing_required_parameter")


def unknown(path: str, hint: str) -> BadRequest:
    return BadRequest(f"Unknown parameter: '{path}'.{hint}", param=path, code="unknown_parameter")


def unsupported(path: str, reason: str) -> BadRequest:
    return BadRequest(f"Unsupported parameter: '{path}': {reason}.", param=path, code="unsupported_parameter")


def unsupported_value(path: str, value: str, reason: str) -> BadRequest:
    return BadRequest(
        f"Unsupported value: '{path}' does not support {shown(value)} here: {reason}.",
        param=path,
        code="unsupported_value",
    )


def not_one_of(path: str, value: str, allowed: tuple[str, ...]) -> BadRequest:
    listed = ", ".join(f"'{word}'" for word in allowed)
    return BadRequest(
        f"Invalid value for '{path}': {shown(value)}. Supported values are: {listed}.", param=path, code="invalid_value"
    )


def invalid(path: str, reason: str) -> BadRequest:
    return BadRequest(f"Invalid '{path}': {reason}.", param=path, code="invalid_value")


def too_small(path: str, value: float, least: float, *, exclusive: bool = False) -> BadRequest:
    kind, sign = _kind(value), ">" if exclusive else ">="
    return BadRequest(
        f"Invalid '{path}': {kind} below minimum value. Expected {sign} {least}, but got {_figure(value)} instead.",
        param=path,
        code=f"{kind}_below_min_value",
    )


def too_large(path: str, value: float, most: float) -> BadRequest:
    kind = _kind(value)
    return BadRequest(
        f"Invalid '{path}': {kind} above maximum value. Expected <= {most}, but got {_figure(value)} instead.",
        param=path,
        code=f"{kind}_above_max_value",
    )


def too_long(path: str, kind: str, length: int, most: int) -> BadRequest:
    """``kind`` is 'array', 'object' or 'string'."""
    return BadRequest(
        f"Invalid '{path}': {kind} too long. Expected maximum length {most}, but got length {length} instead.",
        param=path,
        code=f"{kind}_above_max_length",
    )


def too_short(path: str, kind: str) -> BadRequest:
    """``kind`` is 'array', 'object' or 'string'."""
    return BadRequest(f"Invalid '{path}': empty {kind}.", param=path, code=f"empty_{kind}")


def _figure(value: float) -> str:
    return str(value) if abs(value) < _MAX_FIGURE else f"{value:.3g}"


def _kind(value: float) -> str:
    return "integer" if isinstance(value, int) else "decimal"
