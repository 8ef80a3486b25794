"""What the sandbox decides is what vLLM would have decided on its event loop."""

import copy
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from vllm.config import StructuredOutputsConfig
from vllm.exceptions import QueueOverflowError, VLLMValidationError
from vllm.sampling_params import SamplingParams, StructuredOutputsParams
from vllm.v1.engine.input_processor import InputProcessor

from serving.engine.grammar_check import GrammarCheck
from serving.engine.sandbox import Unavailable
from serving.engine.vllm_grammars import load, settle

SETTINGS = {"backend": "auto", "is_diffusion": False, "tokenizer": None}
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
GOOD: list[dict[str, Any]] = [
    {"json": SCHEMA},
    {"json": orjson.dumps(SCHEMA).decode(), "disable_any_whitespace": True},
    {"json_object": True},
    {"choice": ["yes", "no"]},
    {"regex": "[a-z]{3}"},
    {"grammar": 'root ::= "a" | "b"'},
    {"grammar": 'start: "a" | "b"'},
    {"json": {"type": "integer", "multipleOf": 3}},
]
BAD: list[dict[str, Any]] = [
    {"json": {"type": "strange"}},
    {"json": {"type": "array", "uniqueItems": True}},
    {"json": "not JSON"},
    {"regex": "("},
    {"grammar": "   "},
    {"structural_tag": "{}"},
    {},
]


class InProcess:
    """The sandbox's work without the sandbox."""

    def __init__(self, backend: str = "auto") -> None:
        self._work = load(orjson.dumps({**SETTINGS, "backend": backend}))

    async def run(self, job: bytes) -> bytes:
        return self._work(job)


class Nobody:
    async def run(self, job: bytes) -> bytes:
        raise Unavailable("busy")


def validated(fields: dict[str, Any], config: StructuredOutputsConfig | None) -> StructuredOutputsParams:
    """What vLLM's own validation makes of it."""
    params = SamplingParams(structured_outputs=StructuredOutputsParams(**copy.deepcopy(fields)))
    params._validate_structured_outputs(SimpleNamespace(is_diffusion=False), config, object())
    outputs: StructuredOutputsParams = params.structured_outputs
    return outputs


@pytest.mark.parametrize("backend", ["auto", "xgrammar", "guidance"])
@pytest.mark.parametrize("fields", GOOD, ids=str)
async def test_a_constraint_comes_out_as_from_vllms_own_validation(fields: dict[str, Any], backend: str) -> None:
    check, ours = GrammarCheck(InProcess(backend), 2.0), StructuredOutputsParams(**copy.deepcopy(fields))
    try:
        theirs = validated(fields, StructuredOutputsConfig(backend=backend))
    except VLLMValidationError:
        with pytest.raises(VLLMValidationError):
            await settle(check, ours)
    else:
        await settle(check, ours)
        assert vars(ours) == vars(theirs)


@pytest.mark.parametrize("fields", BAD, ids=str)
async def test_what_vllm_would_refuse_is_refused(fields: dict[str, Any]) -> None:
    outcomes = orjson.loads(await InProcess().run(orjson.dumps([{"json": SCHEMA}, fields, {"json": SCHEMA}])))
    assert ["error" in outcome for outcome in outcomes] == [False, True]
    if fields:
        with pytest.raises(VLLMValidationError, match="No grammar can be made"):
            await settle(GrammarCheck(InProcess(), 2.0), StructuredOutputsParams(**fields))


async def test_a_check_that_cannot_be_made_is_vllms_503() -> None:
    with pytest.raises(QueueOverflowError):
        await settle(GrammarCheck(Nobody(), 2.0), StructuredOutputsParams(json=SCHEMA))


def test_without_a_config_vllm_validates_no_constraint_itself() -> None:
    """``MeteredAsyncLLM.check_grammars_with`` counts on both."""
    assert validated({"regex": "("}, None)._backend is None
    assert "structured_outputs_config" in InputProcessor.__init__.__code__.co_names
