"""What a model's folder says about it, read from config.json and the headers of its safetensors files. No torch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

MAX_HEADER_BYTES = 100_000_000
"""The safetensors format's own bound on a header."""

_FLOAT_BYTES = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8}
_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tekken.json", "vocab.json", "vocab.txt")


class ModelFolderError(ValueError):
    """The folder does not hold a usable model; the text says what is missing or wrong."""


@dataclass(frozen=True)
class ModelSpec:
    """A model's size and shape.

    ``num_float_parameters`` are those stored as floating-point numbers of 16 bits or more, ``packed_bytes`` all other
    tensors (quantised weights). ``kv_elements_per_token`` counts keys and values over all layers.
    ``max_position_embeddings`` is None where config.json does not say.
    """

    architecture: str
    dtype: str
    weight_bytes: int
    num_float_parameters: int
    packed_bytes: int
    num_hidden_layers: int
    kv_elements_per_token: int
    max_position_embeddings: int | None
    has_chat_template: bool

    def engine_dtype(self, dtype: str = "auto") -> str:
        """The number format an engine uses when asked for ``dtype``; vLLM's ``auto`` halves float32 models."""
        if dtype != "auto":
            return dtype
        return self.dtype if self.dtype in ("bfloat16", "float16") else "bfloat16"

    def loaded_bytes(self, dtype: str = "auto") -> int:
        """Bytes of the weights in memory: floating-point ones converted to ``dtype``, packed ones as they are."""
        return self.num_float_parameters * _DTYPE_BYTES[self.engine_dtype(dtype)] + self.packed_bytes

    def kv_bytes_per_token(self, dtype: str = "auto") -> int:
        """Bytes of KV cache that one token takes, over all layers."""
        return self.kv_elements_per_token * _DTYPE_BYTES[self.engine_dtype(dtype)]


def read_spec(folder: Path) -> ModelSpec:
    """Read the folder of a model. Raises ModelFolderError."""
    config = _read_json(folder / "config.json")
    text = config.get("text_config", config)  # multimodal models nest the language model's shape
    if not isinstance(text, dict):
        raise ModelFolderError(f"{folder / 'config.json'}: text_config is not an object")
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES) and not any(folder.glob("*.tiktoken")):
        raise ModelFolderError(f"{folder} has no tokenizer (one of {', '.join(_TOKENIZER_FILES)})")
    num_layers = _number(text, "num_hidden_layers", "n_layer", "num_layers")
    tensors = [tensor for path in _weight_files(folder) for tensor in _read_tensors(path)]
    if not tensors:
        raise ModelFolderError(f"the weights in {folder} hold no tensor")
    floats = [tensor for tensor in tensors if tensor.is_float]
    architectures = config.get("architectures")
    dtype = text.get("dtype") or text.get("torch_dtype") or config.get("dtype") or config.get("torch_dtype")
    return ModelSpec(
        architecture=str(architectures[0]) if isinstance(architectures, list) and architectures else "unknown",
        dtype=str(dtype or "float32"),
        weight_bytes=sum(tensor.num_bytes for tensor in tensors),
        num_float_parameters=sum(tensor.num_bytes // _FLOAT_BYTES[tensor.dtype] for tensor in floats),
        packed_bytes=sum(tensor.num_bytes for tensor in tensors if not tensor.is_float),
        num_hidden_layers=num_layers,
        kv_elements_per_token=num_layers * _kv_elements_per_layer(text),
        max_position_embeddings=_optional_number(text, "max_position_embeddings", "n_positions", "max_seq_len"),
        has_chat_template=_has_chat_template(folder),
    )


def _kv_elements_per_layer(text: Mapping[str, object]) -> int:
    """Numbers that one layer caches per token: keys and values per KV head, or one latent vector (MLA, DeepSeek-V2)."""
    if latent := _optional_number(text, "kv_lora_rank"):
        return latent + (_optional_number(text, "qk_rope_head_dim") or 0)
    num_heads = _number(text, "num_attention_heads", "n_head", "num_heads")
    num_kv_heads = _optional_number(text, "num_key_value_heads") or num_heads
    head_dim = _optional_number(text, "head_dim") or _number(text, "hidden_size", "n_embd", "d_model") // num_heads
    return 2 * num_kv_heads * head_dim


def _optional_number(text: Mapping[str, object], *names: str) -> int | None:
    for name in names:
        value = text.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def _number(text: Mapping[str, object], *names: str) -> int:
    value = _optional_number(text, *names)
    if value is None:
        raise ModelFolderError(f"config.json has no {names[0]}")
    return value


def _has_chat_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    tokenizer_config = folder / "tokenizer_config.json"
    return tokenizer_config.is_file() and "chat_template" in _read_json(tokenizer_config)


def _read_json(path: Path) -> dict[str, object]:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ModelFolderError(f"{path.parent} has no {path.name}") from error
    except OSError as error:
        raise ModelFolderError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ModelFolderError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelFolderError(f"{path} is not a JSON object")
    return value


def _weight_files(folder: Path) -> list[Path]:
    """The files that make up the weights: those an index names, else every safetensors file."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        weight_map = _read_json(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise ModelFolderError(f"{index} has no weight_map")
        return [folder / name for name in sorted({str(name) for name in weight_map.values()})]
    single = folder / "model.safetensors"
    files = [single] if single.is_file() else sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelFolderError(f"{folder} has no safetensors weights")
    return files


@dataclass(frozen=True)
class _Tensor:
    dtype: str
    start_byte: int
    end_byte: int

    @property
    def num_bytes(self) -> int:
        return self.end_byte - self.start_byte

    @property
    def is_float(self) -> bool:
        return self.dtype in _FLOAT_BYTES


def _read_tensors(path: Path) -> list[_Tensor]:
    """The tensors of one safetensors file: 8 bytes of length, a JSON header of offsets, then the data.

    Source of the format: https://github.com/huggingface/safetensors#format
    """
    try:
        with path.open("rb") as file:
            prefix = file.read(8)
            header_bytes = int.from_bytes(prefix, "little")
            text = file.read(header_bytes) if len(prefix) == 8 and header_bytes <= MAX_HEADER_BYTES else b""
        file_bytes = path.stat().st_size
    except FileNotFoundError as error:
        raise ModelFolderError(f"{path.parent} has no {path.name}, which its index names") from error
    except OSError as error:
        raise ModelFolderError(f"{path} cannot be read: {error.strerror}") from error
    if prefix == b"version ":
        raise ModelFolderError(f"{path} is a Git LFS pointer, not the weights; run `git lfs pull`")
    tensors = _parse_header(text, path)
    expected_bytes = 8 + header_bytes + max((tensor.end_byte for tensor in tensors), default=0)
    if file_bytes < expected_bytes:
        raise ModelFolderError(f"{path} is cut short: {file_bytes} of {expected_bytes} bytes")
    return tensors


def _parse_header(text: bytes, path: Path) -> list[_Tensor]:
    try:
        entries = [entry for name, entry in json.loads(text).items() if name != "__metadata__"]
        return [_Tensor(str(entry["dtype"]), *map(int, entry["data_offsets"])) for entry in entries]
    except (ValueError, RecursionError, AttributeError, LookupError, TypeError) as error:
        raise ModelFolderError(f"{path} is not a safetensors file: its header is broken") from error
