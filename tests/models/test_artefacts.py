"""The shipped model files: small, consistent with each other, and measured."""

import hashlib
import json
import math
import struct
from typing import Any

import pytest

from models.demo.text import FOLDER, TURN_END, load_tokenizer, token_id

MAX_FOLDER_BYTES = 25_000_000
MAX_PARAMETERS = 10_000_000


def read_json(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((FOLDER / name).read_text())
    return content


def weights_header() -> dict[str, Any]:
    with (FOLDER / "model.safetensors").open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header: dict[str, Any] = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return header


def test_the_folder_is_at_most_25_megabytes() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir() if path.is_file()) <= MAX_FOLDER_BYTES


def test_the_model_has_at_most_ten_million_parameters_in_bf16() -> None:
    header = weights_header()
    assert {tensor["dtype"] for tensor in header.values()} == {"BF16"}
    assert sum(math.prod(tensor["shape"]) for tensor in header.values()) <= MAX_PARAMETERS


def test_config_weights_and_tokenizer_agree() -> None:
    config, header, tokenizer = read_json("config.json"), weights_header(), load_tokenizer()
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert header["model.embed_tokens.weight"]["shape"] == [config["vocab_size"], config["hidden_size"]]
    assert tokenizer.get_vocab_size() <= config["vocab_size"]
    assert config["eos_token_id"] == token_id(tokenizer, TURN_END)
    assert len([name for name in header if name.endswith("q_proj.weight")]) == config["num_hidden_layers"]


def test_no_sampling_default_surprises_a_client() -> None:
    assert set(read_json("generation_config.json")) == {"eos_token_id", "pad_token_id", "do_sample"}


def test_the_figures_belong_to_these_weights() -> None:
    digest = hashlib.sha256((FOLDER / "model.safetensors").read_bytes()).hexdigest()
    assert read_json("eval.json")["weights_sha256"] == digest


def test_the_model_is_right_about_what_it_was_taught() -> None:
    assert read_json("eval.json")["tasks"]["overall"]["accuracy"] >= 0.95


@pytest.mark.parametrize("row", sorted(read_json("eval.json")["tasks"]) if (FOLDER / "eval.json").exists() else [])
def test_the_readme_shows_the_measured_figure(row: str) -> None:
    accuracy = read_json("eval.json")["tasks"][row]["accuracy"]
    assert f"| {row} | {accuracy:.1%} |" in (FOLDER / "README.md").read_text()
