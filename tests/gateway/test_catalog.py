"""The models as clients see them."""

import os
from pathlib import Path

import pytest

from serving.errors import BadRequest, ModelNotAllowed, ModelNotFound
from serving.gateway.auth import Identity
from serving.gateway.catalog import Catalog, check_task
from serving.gateway.endpoint import Endpoint
from serving.protocol.membership import ReplicaAddress
from serving.router.directory import Directory
from tests.support.stack import ALIAS, MODEL, POOL, SECRET, config_of

EVERYONE = Identity.anonymous()
OTHER = {"name": "other", "max_model_len": 512}


@pytest.fixture
async def directory() -> Directory:
    return Directory(SECRET)


@pytest.fixture
def catalog(tmp_path: Path, directory: Directory) -> Catalog:
    return Catalog(config_of(tmp_path, models=[OTHER]).models, directory)


def only(*models: str) -> Identity:
    return Identity("k1", "key", "tenant", models)


def ids(catalog: Catalog, identity: Identity) -> list[object]:
    return [entry["id"] for entry in catalog.as_list(identity)["data"]]  # type: ignore[attr-defined]


def test_every_name_is_listed(catalog: Catalog) -> None:
    assert ids(catalog, EVERYONE) == [MODEL, ALIAS, "other"]


@pytest.mark.parametrize("name", [MODEL, ALIAS])
def test_a_key_sees_the_models_it_may_use_under_all_their_names(catalog: Catalog, name: str) -> None:
    assert ids(catalog, only(name)) == [MODEL, ALIAS]
    assert ids(catalog, only("nothing")) == []


def test_an_alias_is_an_entry_of_its_own_that_names_its_model(catalog: Catalog) -> None:
    entry = catalog.as_object(ALIAS, EVERYONE)
    assert (entry["id"], entry["root"], entry["object"]) == (ALIAS, MODEL, "model")


@pytest.mark.parametrize("name", ["nope", "", "demo ", "DEMO", "x" * 10_000])
def test_an_unknown_model_is_not_found(catalog: Catalog, name: str) -> None:
    for look_up in (catalog.find, catalog.as_object):
        with pytest.raises(ModelNotFound) as caught:
            look_up(name, EVERYONE)
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
        assert len(caught.value.message) < 200


def test_a_model_that_a_key_may_not_use_is_refused_and_not_shown(catalog: Catalog) -> None:
    with pytest.raises(ModelNotAllowed):
        catalog.find(MODEL, only("other"))
    with pytest.raises(ModelNotFound):
        catalog.as_object(MODEL, only("other"))


async def test_the_context_is_what_the_running_replicas_say(catalog: Catalog, directory: Directory) -> None:
    model = catalog.find("other", EVERYONE)
    assert catalog.max_model_len(model) == 512
    members = [
        ReplicaAddress(name, "other", POOL, "unix:/nowhere", version="v1", max_model_len=length, pid=os.getpid())
        for name, length in (("r0", 300), ("r1", 200))
    ]
    directory.update("other", POOL, members)
    assert catalog.max_model_len(model) == 200
    await directory.close()


FITTING = {
    "generate": set(Endpoint) - {Endpoint.EMBEDDINGS},
    "embed": {Endpoint.EMBEDDINGS, Endpoint.TOKENIZE, Endpoint.DETOKENIZE},
}


@pytest.mark.parametrize("endpoint", Endpoint)
@pytest.mark.parametrize("task", FITTING)
def test_a_model_is_asked_only_for_what_it_was_made_for(tmp_path: Path, task: str, endpoint: Endpoint) -> None:
    model = config_of(tmp_path, models=[{"name": "other", "task": task}]).models[1]
    if endpoint in FITTING[task]:
        check_task(model, endpoint)
    else:
        with pytest.raises(BadRequest) as caught:
            check_task(model, endpoint)
        assert (caught.value.param, caught.value.code) == ("model", "unsupported_value")
