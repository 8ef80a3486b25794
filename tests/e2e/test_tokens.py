"""/tokenize and /detokenize."""

import httpx

from tests.e2e.prompts import CAPITAL
from tests.e2e.server import MODEL, Json


def post(http: httpx.Client, path: str, **body: object) -> Json:
    answer = http.post(path, json={"model": MODEL, **body})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_text_survives_the_way_there_and_back(http: httpx.Client) -> None:
    text = "Zürich, 3 × 4 = 12 – ok 🚢"
    tokens = post(http, "/tokenize", prompt=text, add_special_tokens=False)
    assert tokens["count"] == len(tokens["tokens"])
    assert post(http, "/detokenize", tokens=tokens["tokens"])["prompt"] == text


def test_a_conversation_is_counted_as_a_chat_request_counts_it(http: httpx.Client) -> None:
    counted = post(http, "/tokenize", messages=CAPITAL)["count"]
    answer = post(http, "/v1/chat/completions", messages=CAPITAL, max_tokens=1)
    assert counted == answer["usage"]["prompt_tokens"]


def test_a_negative_token_is_refused(http: httpx.Client) -> None:
    answer = http.post("/detokenize", json={"model": MODEL, "tokens": [-1]})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
