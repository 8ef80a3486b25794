"""What a model's folder says about it."""

import json
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.spec import ModelFolderError, read_spec

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "dtype": "bfloat16",
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}


def safetensors(tensors: dict[str, tuple[str, int]], num_missing_bytes: int = 0) -> bytes:
    """A safetensors file of zeros: name -> (dtype, bytes)."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, num_bytes) in tensors.items():
        header[name] = {"dtype": dtype, "shape": [num_bytes], "data_offsets": [end, end + num_bytes]}
        end += num_bytes
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(end - num_missing_bytes)


def write_model(folder: Path, config: dict[str, object] = LLAMA, weights: bytes | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights or safetensors({"a": ("BF16", 1000), "b": ("F32", 400)}))
    return folder


def test_sizes_come_from_the_weights_and_the_shape_from_config_json(tmp_path: Path) -> None:
    spec = read_spec(write_model(tmp_path))
    assert spec.architecture == "LlamaForCausalLM"
    assert (spec.weight_bytes, spec.num_float_parameters, spec.packed_bytes) == (1400, 600, 0)
    assert (spec.num_hidden_layers, spec.max_position_embeddings) == (4, 2048)
    assert spec.kv_elements_per_token == 4 * 2 * 2 * 32


@pytest.mark.parametrize(
    ("stored", "asked", "used"),
    [
        ("bfloat16", "auto", "bfloat16"),
        ("float16", "auto", "float16"),
        ("float32", "auto", "bfloat16"),
        ("bfloat16", "float32", "float32"),
    ],
)
def test_an_engine_uses_the_models_format_unless_asked_and_halves_float32(
    stored: str, asked: str, used: str, tmp_path: Path
) -> None:
    assert read_spec(write_model(tmp_path, LLAMA | {"dtype": stored})).engine_dtype(asked) == used


def test_floats_are_converted_in_memory_and_packed_weights_are_not(tmp_path: Path) -> None:
    spec = read_spec(write_model(tmp_path, weights=safetensors({"a": ("BF16", 1000), "q": ("I32", 800)})))
    assert spec.loaded_bytes() == 1000 + 800
    assert spec.loaded_bytes("float32") == 2000 + 800
    assert spec.kv_bytes_per_token("float32") == 2 * spec.kv_bytes_per_token()


@pytest.mark.parametrize(
    ("config", "kv_elements_per_token"),
    [
        ({"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64}, 2 * 2 * 4 * 16),
        ({"n_layer": 2, "n_head": 4, "n_embd": 64}, 2 * 2 * 4 * 16),
        ({"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 128}, 2 * 2 * 128),
        ({"num_hidden_layers": 2, "kv_lora_rank": 512, "qk_rope_head_dim": 64}, 2 * (512 + 64)),
        ({"text_config": {"num_hidden_layers": 2, "num_attention_heads": 1, "hidden_size": 8}}, 2 * 2 * 8),
    ],
)
def test_a_tokens_kv_cache_follows_from_heads_or_from_the_latent(
    config: dict[str, object], kv_elements_per_token: int, tmp_path: Path
) -> None:
    spec = read_spec(write_model(tmp_path, config))
    assert spec.kv_elements_per_token == kv_elements_per_token
    assert spec.max_position_embeddings is None


def test_an_index_names_the_files_that_count(tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / "model-1.safetensors").write_bytes(safetensors({"a": ("BF16", 10)}))
    (tmp_path / "model-2.safetensors").write_bytes(safetensors({"b": ("BF16", 20)}))
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert read_spec(tmp_path).weight_bytes == 30


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_chat_template_is_its_own_file_or_in_the_tokenizers_config(name: str, tmp_path: Path) -> None:
    write_model(tmp_path)
    assert not read_spec(tmp_path).has_chat_template
    (tmp_path / name).write_text(json.dumps({"chat_template": "{{ messages }}"}))
    assert read_spec(tmp_path).has_chat_template


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("config.json", None, "has no config.json"),
        ("config.json", b"{", "is not JSON"),
        ("config.json", b"[" * 100_000, "is not JSON"),
        ("config.json", b"[]", "is not a JSON object"),
        ("config.json", b"{}", "config.json has no num_hidden_layers"),
        ("config.json", b'{"num_hidden_layers": 1}', "config.json has no num_attention_heads"),
        ("config.json", b'{"text_config": 1}', "text_config is not an object"),
        ("tokenizer.json", None, "has no tokenizer"),
        ("model.safetensors", None, "has no safetensors weights"),
        ("model.safetensors", b"", "is not a safetensors file"),
        ("model.safetensors", b"\xff" * 100, "is not a safetensors file"),
        ("model.safetensors", struct.pack("<Q", 2) + b"[]", "is not a safetensors file"),
        ("model.safetensors", safetensors({"a": ("BF16", 10)}, num_missing_bytes=3), "is cut short"),
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "run `git lfs pull`"),
        ("model.safetensors.index.json", b"{}", "has no weight_map"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "x.safetensors"}}', "has no x.safetensors, which its"),
    ],
)
def test_a_folder_that_is_no_model_says_what_is_wrong(
    name: str, content: bytes | None, reason: str, tmp_path: Path
) -> None:
    write_model(tmp_path)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelFolderError, match=reason):
        read_spec(tmp_path)


def test_a_config_json_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    with pytest.raises(ModelFolderError, match="cannot be read: Is a directory"):
        read_spec(tmp_path)


def test_a_weight_file_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "x.safetensors").mkdir()
    with pytest.raises(ModelFolderError, match="cannot be read: Is a directory"):
        read_spec(tmp_path)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.binary(max_size=60),
    header=st.integers() | st.text() | st.lists(st.integers()) | st.fixed_dictionaries({"dtype": st.text()}),
)
def test_any_bytes_give_a_spec_or_a_model_folder_error(data: bytes, header: object, tmp_path: Path) -> None:
    text = json.dumps({"a": header}).encode()
    for content in (data, struct.pack("<Q", len(data)) + data, struct.pack("<Q", len(text)) + text):
        write_model(tmp_path, weights=content or b"\0")
        with pytest.raises(ModelFolderError):
            read_spec(tmp_path)
