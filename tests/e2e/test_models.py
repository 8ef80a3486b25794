"""The list of models, and what a model is not for."""

import openai
import pytest

from tests.e2e.server import ALIAS, MODEL, Server


def test_a_model_is_listed_under_its_name_and_its_alias(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL, ALIAS]


@pytest.mark.parametrize("name", [MODEL, ALIAS])
def test_a_model_can_be_looked_up_by_either(client: openai.OpenAI, name: str) -> None:
    model = client.models.retrieve(name)
    assert (model.id, model.object, model.owned_by) == (name, "model", "ballast")
    assert model.max_model_len == 4096  # type: ignore[attr-defined]


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-9")
    assert caught.value.code == "model_not_found"


def test_a_key_sees_only_the_models_it_may_use(server: Server) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.outsider_key, max_retries=0) as outsider:
        assert list(outsider.models.list()) == []
        with pytest.raises(openai.NotFoundError):
            outsider.models.retrieve(MODEL)


def test_a_model_that_writes_text_gives_no_embeddings_and_says_so(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="embeddings") as caught:
        client.embeddings.create(model=ALIAS, input="hello")
    assert caught.value.param == "model"
