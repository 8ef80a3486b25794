"""Checks of sampling fields that have a shape of their own."""

from typing import TYPE_CHECKING

from serving.gateway import refusal
from serving.gateway.checks import INT32_MAX, Array, Boolean, Integer, Number, Object, Text

if TYPE_CHECKING:
    from serving.config.limits import Limits

_MAX_TOKEN_ID_DIGITS = 10
_BIAS = Number(-100, 100)

_STOP_STRING = Text("max_stop_chars", min_chars=1)
_STOP_STRINGS = Array(_STOP_STRING, "max_stop")

STREAM_OPTIONS = Object(
    {"include_usage": Boolean(), "include_obfuscation": Boolean(), "continuous_usage_stats": Boolean()}, is_closed=True
)
REPETITION_DETECTION = Object(
    {"max_pattern_size": Integer(0, 64), "min_pattern_size": Integer(0, 64), "min_count": Integer(0, 1024)},
    is_closed=True,
)


def stop(value: object, path: str, limits: "Limits") -> object:
    """A stop string, or an array of at most `limits.max_stop`, each at most `limits.max_stop_chars` characters."""
    if type(value) is str:
        return _STOP_STRING(value, path, limits)
    if type(value) is list:
        return _STOP_STRINGS(value, path, limits)
    raise refusal.wrong_type(path, "a string or an array of strings", value)


def logit_bias(value: object, path: str, limits: "Limits") -> object:
    """Object of at most `limits.max_logit_bias` token ids, each with a number from -100 to 100."""
    if type(value) is not dict:
        raise refusal.wrong_type(path, "an object", value)
    if len(value) > limits.max_logit_bias:
        raise refusal.too_long(path, "object", len(value), limits.max_logit_bias)
    for key, bias in value.items():
        is_id = key.isascii() and key.isdigit() and len(key) <= _MAX_TOKEN_ID_DIGITS and int(key) <= INT32_MAX
        if not is_id:
            raise refusal.invalid(path, f"the key {refusal.shown(key)} is not a token id")
        _BIAS(bias, f"{path}.{key}", limits)
    return value
