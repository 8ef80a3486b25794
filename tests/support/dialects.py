"""The three streamed dialects: where each is posted, a minimal body, and how its clients know that a stream broke."""

from tests.support.stack import CHAT, MODEL

MESSAGES = [{"role": "user", "content": "hi"}]
BODIES: dict[str, dict[str, object]] = {
    CHAT: {"model": MODEL, "messages": MESSAGES, "stream": True},
    "/v1/completions": {"model": MODEL, "prompt": "hi", "stream": True},
    "/v1/responses": {"model": MODEL, "input": "hi", "stream": True},
    "/v1/messages": {"model": MODEL, "messages": MESSAGES, "max_tokens": 16, "stream": True},
}
