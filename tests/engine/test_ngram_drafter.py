"""The index in the drafter's place proposes, at every step, what vLLM's own proposer would."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vllm.v1.spec_decode import ngram_proposer
from vllm.v1.spec_decode.ngram_proposer import NgramProposer

from serving.engine import kernel_setup
from serving.engine.kernel_setup import KernelsUnusable, install
from serving.engine.ngram_drafter import IndexedNgramProposer
from serving.engine.sampling_counts import VARIABLE, Count, SamplingCounts
from tests.support.vllm_batch import MAX_NUM_REQS, FakeRunner

MAX_TOKENS, NUM_DRAFTS = 48, 3
pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def stock() -> Iterator[NgramProposer]:
    """Of two to three tokens; its warm-up has 1024 rows. Its loop over requests is left to Python: numba takes half a
    minute to make it parallel."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ngram_proposer, "batch_propose_numba", ngram_proposer.batch_propose_numba.py_func)
        yield made_stock()


def made_stock() -> NgramProposer:
    return NgramProposer(
        SimpleNamespace(
            speculative_config=SimpleNamespace(
                prompt_lookup_min=2, prompt_lookup_max=3, num_speculative_tokens=NUM_DRAFTS
            ),
            model_config=SimpleNamespace(max_model_len=MAX_TOKENS),
            scheduler_config=SimpleNamespace(max_num_seqs=1024),
            parallel_config=SimpleNamespace(tensor_parallel_size=1),
        )
    )


class DraftingRunner(FakeRunner):
    """Requests also grow in the batch's rows, as vLLM's bookkeeping has it."""

    def __init__(self, stock: NgramProposer) -> None:
        super().__init__()
        self.drafter: Any = stock
        self.preempted: dict[str, Any] = {}

    def change(self, moves: Mapping[str, tuple[str, list[int]]]) -> None:
        """What happens to requests between two steps, in vLLM's order: all leave that do, then others come. Ended are
        forgotten, preempted come back as they were, and a session's next turn has another prompt."""
        known = {**self.requests, **self.preempted}
        for name in moves:
            if self.requests.pop(name, None) is not None:
                self.input_batch.remove_request(name)
        for name, (kind, prompt) in moves.items():
            request = known.get(name)
            self.preempted.pop(name, None)
            if request is None or kind == "new":
                self.add(name, prompt=prompt)
            elif kind == "rest":
                self.preempted[name] = request
            elif kind in ("back", "turn"):
                if kind == "turn":
                    request.prompt_token_ids, request.num_prompt_tokens = prompt, len(prompt)
                    request.output_token_ids.clear()
                self.requests[name] = request
                self.input_batch.add_request(request)
        self.input_batch.condense()
        self.refresh()

    def sampled(self, name: str, tokens: list[int]) -> None:
        """These were accepted; behind them stand drafts that were not."""
        batch = self.input_batch
        row = batch.req_id_to_index[name]
        first = int(batch.num_tokens_no_spec[row])
        batch.token_ids_cpu[row, first : first + len(tokens)] = tokens
        batch.token_ids_cpu[row, first + len(tokens) : first + len(tokens) + 2] = 0
        batch.num_tokens_no_spec[row] = first + len(tokens)
        self.requests[name].output_token_ids.extend(tokens)

    def room(self, name: str) -> int:
        return MAX_TOKENS - self.requests[name].num_tokens


names = st.sampled_from("abcde")
tokens = st.lists(st.integers(1, 3), max_size=NUM_DRAFTS + 1)
prompts = st.lists(st.integers(1, 3), min_size=1, max_size=20)
kinds = st.sampled_from(["new", "back", "turn", "rest", "end"])
moves = st.dictionaries(names, st.tuples(kinds, prompts), max_size=3)
steps = st.lists(st.tuples(moves, st.dictionaries(names, tokens), st.integers(0, NUM_DRAFTS)), max_size=25)


@given(steps)
def test_every_step_gets_the_drafts_of_a_rescan(stock: NgramProposer, steps: list[Any]) -> None:
    """Whoever came, left or came back, under a name that another had before, and however many drafts were taken."""
    runner = DraftingRunner(stock)
    ours = IndexedNgramProposer(stock, runner)
    batch = runner.input_batch
    for happened, grown, num_drafts in steps:
        runner.change(happened)
        sampled = [grown.get(name, [])[: runner.room(name)] for name in batch.req_ids]
        for name, new in zip(list(batch.req_ids), sampled, strict=True):
            runner.sampled(name, new)
        given_to_both = num_drafts, sampled, batch.num_tokens_no_spec, batch.token_ids_cpu
        assert ours.propose(*given_to_both) == stock.propose(*given_to_both)


def test_no_more_slots_are_held_than_there_are_requests(stock: NgramProposer) -> None:
    runner = DraftingRunner(stock)
    ours = IndexedNgramProposer(stock, runner)
    batch = runner.input_batch
    for number in range(3 * MAX_NUM_REQS):
        gone = str(number - MAX_NUM_REQS)
        if gone in runner.requests:
            runner.remove(gone)
        runner.add(str(number), prompt=[1, 2, 1, 2])
        runner.refresh()
        drafts = ours.propose(1, [[2]] * batch.num_reqs, batch.num_tokens_no_spec, batch.token_ids_cpu)
        assert drafts == [[1]] * batch.num_reqs


# ---------------------------------------------------------------------------------------------------------- when loaded


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> SamplingCounts:
    monkeypatch.delenv(VARIABLE, raising=False)
    return SamplingCounts.made()


def test_the_index_is_used_where_the_engine_drafts_by_prompt_lookup(
    stock: NgramProposer, counts: SamplingCounts, caplog: pytest.LogCaptureFixture
) -> None:
    runner = DraftingRunner(stock)
    with caplog.at_level("INFO", "ballast.engine"):
        install(runner, "on", counts)
    assert type(runner.drafter) is IndexedNgramProposer
    assert "drafting by prompt lookup with Ballast's n-gram index" in caplog.text


def test_another_drafter_is_left_alone(stock: NgramProposer, counts: SamplingCounts) -> None:
    runner = DraftingRunner(stock)
    runner.drafter = other = object()
    install(runner, "on", counts)
    assert runner.drafter is other


@pytest.mark.parametrize("fault", ["version", "settings", "self-test", "off"])
def test_elsewhere_vllm_drafts_and_the_reason_is_said(
    stock: NgramProposer,
    counts: SamplingCounts,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fault: str,
) -> None:
    runner = DraftingRunner(stock)
    runner.drafter = mine = NgramProposer.__new__(NgramProposer)
    vars(mine).update(vars(stock))
    words = {
        "version": "0.99.0 is not one",
        "settings": "has no drafter.min_n",
        "self-test": "self-test on contexts of [30",
        "off": "engine.kernels is off",
    }
    if fault == "version":
        monkeypatch.setattr(kernel_setup.vllm, "__version__", "0.99.0")
    elif fault == "settings":
        del mine.min_n
    elif fault == "self-test":
        name = "_find_longest_matched_ngram_and_propose_tokens"
        right = getattr(ngram_proposer, name)
        monkeypatch.setattr(
            ngram_proposer,
            name,
            SimpleNamespace(py_func=lambda tokens, *rest: right.py_func(tokens, *rest) + 1),
        )
    if fault != "off":
        with pytest.raises(KernelsUnusable) as caught:
            install(runner, "on", counts)
        assert words[fault] in str(caught.value)
    with caplog.at_level("INFO", "ballast.engine"):
        install(runner, "off" if fault == "off" else "auto", counts)
    assert "drafting with vLLM's own code: " in caplog.text
    assert words[fault] in caplog.text
    assert runner.drafter is mine


# ----------------------------------------------------------------------------------------------------- in a real engine


def test_an_engine_writes_the_same_and_accepts_as_many_drafts_with_it_as_without() -> None:
    """Greedy text, up to the longest context allowed; what vLLM's rejection sampler chose is counted as vLLM's."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.support.drafting_engine", str(root / "models" / "demo")]
    ran = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, text=True, check=True, timeout=240)
    ours, stock = (json.loads(line) for line in ran.stdout.splitlines())
    assert (ours["drafter"], stock["drafter"]) == ("IndexedNgramProposer", "NgramProposer")
    assert ours["token_ids"] == stock["token_ids"]
    assert ours["num_accepted"] == stock["num_accepted"] > 0
    assert ours["counts"][Count.KERNELS] > 0
    assert ours["counts"][Count.UNSUPPORTED] > 0
    assert stock["counts"][Count.STOCK] > 0
