"""What the operator sees: numbers that add up, lines that join up, and no word of what was said."""

import json
import shutil
import subprocess
import uuid
from pathlib import Path

import anthropic
import httpx
import openai
import pytest

from tests.e2e.prompts import COUNT_TO_TEN
from tests.e2e.server import MODEL, POOL, Server, until

CHAT = "/v1/chat/completions"
FAMILIES = {
    "ballast_requests": {"model", "pool", "route", "code"},
    "ballast_tokens": {"model", "pool", "direction"},
    "ballast_time_to_first_token_seconds": {"model", "pool"},
    "ballast_inter_token_latency_seconds": {"model", "pool"},
    "ballast_request_duration_seconds": {"model", "pool"},
    "ballast_queue_seconds": {"model"},
    "ballast_gateway_overhead_seconds": {"route"},
    "ballast_gateway_loop_lag_seconds": set(),
    "ballast_requests_in_flight": set(),
    "ballast_replica_start_seconds": {"model", "pool", "step"},
}


@pytest.mark.parametrize("stream", [False, True])
def test_one_request_moves_every_number_by_what_it_was(server: Server, http: httpx.Client, stream: bool) -> None:
    """Tokens are counted for streams too, though this client did not ask for usage."""
    before = server.metrics()
    body = {"model": MODEL, "messages": COUNT_TO_TEN, "temperature": 0, "max_tokens": 20, "stream": stream}
    answer = http.post(CHAT, json=body)
    line = server.request_line(answer.headers["x-request-id"])  # written when everything is counted
    after = server.metrics()

    def moved(name: str, **labels: str) -> float:
        return after.value(name, **labels) - before.value(name, **labels)

    of_pool = {"model": MODEL, "pool": POOL}
    assert moved("ballast_requests_total", **of_pool, route=CHAT, code="200") == 1
    assert moved("ballast_tokens_total", **of_pool, direction="prompt") == line["prompt_tokens"]
    assert moved("ballast_tokens_total", **of_pool, direction="output") == line["output_tokens"] > 0
    assert moved("ballast_time_to_first_token_seconds_count", **of_pool) == int(stream)
    assert moved("ballast_request_duration_seconds_count", **of_pool) == 1
    assert moved("ballast_gateway_overhead_seconds_count", route=CHAT) == 1
    assert moved("ballast_queue_seconds_count", model=MODEL) == 1
    gaps = moved("ballast_inter_token_latency_seconds_count", **of_pool)
    assert 0 < gaps <= answer.text.count("data: ") if stream else gaps == 0
    if not stream:
        usage = answer.json()["usage"]
        assert (line["prompt_tokens"], line["output_tokens"]) == (usage["prompt_tokens"], usage["completion_tokens"])


def test_what_samples_is_told(server: Server, http: httpx.Client) -> None:
    """Of each token somebody has chosen it: here the kernels, in the engine's own process."""
    before = server.metrics()
    body = {"model": MODEL, "messages": COUNT_TO_TEN, "max_tokens": 20, "temperature": 1, "seed": 1}
    line = server.request_line(http.post(CHAT, json=body).headers["x-request-id"])
    after = server.metrics()
    rows = [at.value("ballast_sampled_rows_total", pool=POOL, sampler="kernels") for at in (before, after)]
    assert rows[1] - rows[0] >= line["output_tokens"]
    assert after.value("ballast_kernels_active", pool=POOL) == 1
    assert after.value("ballast_sampled_rows_total", sampler="vllm") == 0
    assert after.value("ballast_faulty_logits_rows_total") == 0


def test_a_refused_request_is_counted_under_its_status(server: Server, http: httpx.Client) -> None:
    labels = {"route": CHAT, "code": "400"}
    before = server.metrics().value("ballast_requests_total", **labels)
    http.post(CHAT, json={"model": MODEL, "messages": []})
    until(lambda: server.metrics().value("ballast_requests_total", **labels) == before + 1, 5, "a count of 400")


def test_paths_that_do_not_exist_share_one_label(server: Server, http: httpx.Client) -> None:
    """Or a scanner would fill the time series database."""
    path = f"/nonsense-{uuid.uuid4().hex}"
    http.get(path)
    assert path not in server.metrics_text()


def test_every_family_is_there_with_its_labels(server: Server, client: openai.OpenAI) -> None:
    client.chat.completions.create(model=MODEL, messages=COUNT_TO_TEN, temperature=0, max_tokens=20)
    families = server.metrics().families
    for name, labels in FAMILIES.items():
        family = families[name]
        assert family.documentation
        assert {label for sample in family.samples for label in sample.labels} - {"le"} == labels, name


def test_the_start_of_the_replica_is_told_step_by_step(server: Server) -> None:
    """None of it twice, and in all about what the log says."""
    metrics = server.metrics()
    of_pool = {"model": MODEL, "pool": POOL}
    lines = [line for line in map(json.loads, server.log_text().splitlines()) if line["event"].endswith("is ready")]
    steps = lines[-1]["start_s"]
    assert list(steps) == ["process", "imports", "engine", "weights", "compile", "warm-up", "api"]
    for step, seconds in steps.items():
        assert metrics.value("ballast_replica_start_seconds", **of_pool, step=step) == seconds


def test_vllms_own_series_say_which_replica_they_are_of(server: Server, client: openai.OpenAI) -> None:
    labels = {"pool": POOL, "replica": server.replica()["replica"]}
    before = server.metrics().value("vllm:generation_tokens_total", **labels)
    answer = client.chat.completions.create(model=MODEL, messages=COUNT_TO_TEN, temperature=0, max_tokens=20)
    assert answer.usage is not None
    wanted = before + answer.usage.completion_tokens
    until(lambda: server.metrics().value("vllm:generation_tokens_total", **labels) >= wanted, 5, "vLLM's count")
    families = server.metrics().families
    for name in ("vllm:num_requests_running", "vllm:kv_cache_usage_perc", "vllm:iteration_tokens_total"):
        assert all(labels.items() <= sample.labels.items() for sample in families[name].samples), name
        assert families[name].samples


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_finds_no_fault_with_our_metrics(server: Server) -> None:
    own = "\n".join(line for line in server.metrics_text().splitlines() if "vllm:" not in line) + "\n"
    command = ["promtool", "check", "metrics"]
    checked = subprocess.run(command, input=own, capture_output=True, text=True, timeout=30, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_no_word_of_a_prompt_or_an_answer_and_no_key_is_left_anywhere(
    server: Server, client: openai.OpenAI, claude: anthropic.Anthropic, http: httpx.Client
) -> None:
    """Neither in our log, nor in Ray's and vLLM's, nor in the metrics; also not where the request was refused."""
    canary = f"zq{uuid.uuid4().hex}"
    messages = [{"role": "user", "content": f"Repeat {canary}."}]
    client.chat.completions.create(model=MODEL, messages=messages, max_tokens=8)
    with client.chat.completions.create(model=MODEL, messages=messages, max_tokens=8, stream=True) as stream:
        list(stream)
    client.responses.create(model=MODEL, input=canary, max_output_tokens=8)
    claude.messages.create(model=MODEL, messages=messages, max_tokens=8)
    last = {}
    for fields in ({"temperature": canary}, {canary: 1}, {"tool_choice": canary}, {"messages": [{"role": canary}]},
                   {"stop": [canary] * 9}, {"response_format": {"type": canary}}):  # fmt: skip
        last = http.post(CHAT, json={"model": MODEL, "messages": messages, **fields})
        assert last.status_code == 400
    http.post("/tokenize", json={"model": MODEL, "prompt": canary})
    server.request_line(last.headers["x-request-id"])
    assert canary not in server.metrics_text()
    for text in (canary, server.key, server.outsider_key):
        assert _files_with(text, server.config.server.state_dir, server.runtime_dir) == []


def _files_with(text: str, *folders: Path) -> list[str]:
    """Regular files that hold ``text``."""
    files = (path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return [str(path) for path in files if text.encode() in path.read_bytes()]
