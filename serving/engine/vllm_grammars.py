"""vLLM's own validation of structured outputs, done in the sandbox, and its result put back where vLLM looks for it."""

from types import SimpleNamespace
from typing import Any

import orjson
from vllm.config import StructuredOutputsConfig, VllmConfig
from vllm.exceptions import QueueOverflowError, VLLMValidationError
from vllm.sampling_params import SamplingParams, StructuredOutputsParams
from vllm.tokenizers import get_tokenizer
from vllm.utils.mistral import is_mistral_tokenizer

from serving.engine.constraints import canonical
from serving.engine.grammar_check import Fields, GrammarCheck, Refused
from serving.engine.sandbox import Unavailable, Work

TARGET = "serving.engine.vllm_grammars:load"


# --------------------------------------------------------------------------------------------------------- the replica


def settings_of(config: VllmConfig, tokenizer: Any) -> bytes:
    """What ``load`` needs to decide as this engine would."""
    model = config.model_config
    # vLLM looks into the tokenizer only if it is Mistral's; any other need not be loaded again.
    source = {
        "tokenizer_name": model.tokenizer,
        "tokenizer_mode": model.tokenizer_mode,
        "revision": model.tokenizer_revision,
    }
    return orjson.dumps(
        {
            "backend": config.structured_outputs_config.backend,
            "is_diffusion": model.is_diffusion,
            "tokenizer": source if is_mistral_tokenizer(tokenizer) else None,
        }
    )


async def settle(check: GrammarCheck, params: StructuredOutputsParams) -> None:
    """Change ``params`` as vLLM's validation would. Raises vLLM's errors for a 400 and for a 503."""
    try:
        (settled,) = await check.settle([canonical(vars(params))])
    except Refused as refused:
        raise VLLMValidationError(f"No grammar can be made of the constraint: {refused.reason}.") from refused
    except Unavailable as unavailable:
        raise QueueOverflowError from unavailable
    params._backend, params._backend_was_auto = settled.backend, settled.was_auto
    if settled.grammar is not None:
        params.choice, params.grammar = None, settled.grammar


# --------------------------------------------------------------------------------------------------------- the sandbox


def load(settings: bytes) -> Work:
    """The sandbox's target: everything imported, so that a child only converts."""
    import vllm.v1.structured_output.backend_guidance
    import vllm.v1.structured_output.backend_lm_format_enforcer
    import vllm.v1.structured_output.backend_outlines
    import vllm.v1.structured_output.backend_xgrammar  # noqa: F401

    values = orjson.loads(settings)
    model = SimpleNamespace(is_diffusion=values["is_diffusion"])
    config = StructuredOutputsConfig(backend=values["backend"])
    tokenizer = get_tokenizer(**values["tokenizer"]) if values["tokenizer"] else object()
    validate(model, config, tokenizer, {"json": {"type": "object"}})

    def work(job: bytes) -> bytes:
        outcomes = []
        for fields in orjson.loads(job):
            outcomes.append(validate(model, config, tokenizer, fields))
            if "error" in outcomes[-1]:
                break
        return orjson.dumps(outcomes)

    return work


def validate(model: Any, config: StructuredOutputsConfig, tokenizer: Any, fields: Fields) -> dict[str, object]:
    """Fields of ``Settled``, or an ``error``, for one constraint."""
    try:
        params = SamplingParams(structured_outputs=StructuredOutputsParams(**fields))
        params._validate_structured_outputs(model, config, tokenizer)
    except Exception as error:  # noqa: BLE001 - the top of a child that exists to find out whether this works
        return {"error": str(error) or type(error).__name__}
    outputs = params.structured_outputs
    was_written = outputs.grammar is not None and outputs.grammar != fields.get("grammar")
    return {
        "backend": outputs._backend,
        "was_auto": outputs._backend_was_auto,
        "grammar": outputs.grammar if was_written else None,
    }
