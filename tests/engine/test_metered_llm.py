"""An answer that goes on in another engine: what was sent is not sent again, and what was at its end ends."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest, FinishReason
from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector

from serving.engine.base import RequestContext, current_request
from serving.engine.metered_llm import MeteredAsyncLLM
from tests.models.test_text import FOLDER

TEXT = "one two three four five six seven eight"


class Engine:
    """The part of ``MeteredAsyncLLM`` between its caller and the engine's process, which the test plays."""

    def __init__(self) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(FOLDER)
        self.processor = OutputProcessor(self.tokenizer, log_stats=False)
        self.asked: list[EngineCoreRequest] = []
        self.queue = RequestOutputCollector(RequestOutputKind.DELTA, "r")

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def resume(self, sent: str, eos: int | None = None, **params: Any) -> None:
        """Begin with ``sent`` as what another engine has made; ``eos`` ends a sequence, as the model's config says."""
        sampling_params = SamplingParams(output_kind=RequestOutputKind.DELTA, max_tokens=100, **params)
        sampling_params.update_from_generation_config({}, eos)
        request = EngineCoreRequest(
            request_id="r", prompt_token_ids=self.ids("Count: "), mm_features=None, pooling_params=None,
            sampling_params=sampling_params,
            arrival_time=0.0, lora_request=None, cache_salt=None, data_parallel_rank=None, external_req_id="r",
        )  # fmt: skip

        async def add(rest: EngineCoreRequest) -> None:
            self.asked.append(rest)

        core = SimpleNamespace(add_request_async=add)
        llm: Any = SimpleNamespace(output_processor=self.processor, engine_core=core, meter=None)
        token = current_request.set(RequestContext(resume=tuple(self.ids(sent))))
        try:
            asyncio.run(MeteredAsyncLLM._add_request(llm, request, None, None, 0, self.queue))
        finally:
            current_request.reset(token)

    def make(self, ids: list[int], reason: FinishReason | None = None) -> None:
        """The engine's process has made these tokens, one after the other."""
        for place, each in enumerate(ids):
            ends = reason if place + 1 == len(ids) else None
            self.processor.process_outputs([EngineCoreOutput("r", [each], finish_reason=ends)])

    def said(self) -> tuple[str, list[int], str | None]:
        """Text, tokens and reason of what has come out since the last call; nothing: empty."""
        output: Any = self.queue.get_nowait()
        if output is None:
            return "", [], None
        [choice] = output.outputs
        return choice.text, list(choice.token_ids), choice.finish_reason


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.mark.parametrize("interval", [1, 3])
def test_what_was_sent_is_not_sent_again(engine: Engine, interval: int) -> None:
    sent, rest = TEXT[:18], TEXT[18:]
    engine.resume(sent, stream_interval=interval)
    [asked] = engine.asked
    assert asked.prompt_token_ids == engine.ids("Count: ") + engine.ids(sent)
    assert asked.sampling_params is not None
    assert asked.sampling_params.max_tokens == 100 - len(engine.ids(sent))
    engine.make(engine.ids(rest), FinishReason.LENGTH)
    assert engine.said() == (rest, engine.ids(rest), "length")


def test_an_answer_that_a_stop_string_had_ended_ends(engine: Engine) -> None:
    """Its last tokens have reached the client, its end has not: nothing is made and nothing said again."""
    engine.resume(TEXT, stop=["five"])
    assert not engine.asked
    assert engine.said() == ("", [], "stop")


@pytest.mark.parametrize(("ignore_eos", "is_over"), [(True, False), (False, True)])
def test_an_end_of_sequence_ends_an_answer_unless_it_is_ignored(
    engine: Engine, ignore_eos: bool, is_over: bool
) -> None:
    engine.resume(TEXT, eos=engine.ids(TEXT)[-1], ignore_eos=ignore_eos)
    assert bool(engine.asked) is not is_over
    assert engine.said()[2] == ("stop" if is_over else None)


def test_what_may_become_a_stop_string_is_still_to_be_sent(engine: Engine) -> None:
    sent = TEXT[:20]
    engine.resume(sent, stop=["xxxxx"])
    engine.make(engine.ids(TEXT[20:]), FinishReason.LENGTH)
    text, ids, reason = engine.said()
    assert (text, ids, reason) == (TEXT[16:], engine.ids(TEXT[20:]), "length")
