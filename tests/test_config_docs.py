"""The configuration reference and the schema file are in step with the config's types."""

import dataclasses
import json

import pytest

from serving.config.engine import CpuEngine, CudaEngine
from serving.config.extra import REFUSED
from serving.config_docs import FOLDER, reference_markdown, schema_text

OUT_OF_STEP = "run `python -m serving.config_docs`"


def test_the_reference_is_what_the_types_say() -> None:
    assert (FOLDER / "configuration.md").read_text() == reference_markdown(), OUT_OF_STEP


def test_the_schema_file_is_what_the_types_say() -> None:
    assert (FOLDER / "ballast.schema.json").read_text() == schema_text(), OUT_OF_STEP


def test_every_key_has_a_description() -> None:
    sections = json.loads(schema_text())["$defs"].values()
    bare = [
        key for section in sections for key, node in section.get("properties", {}).items() if "description" not in node
    ]
    assert [key for key in bare if key not in ("slo", "cost")] == []  # these two show their section's own


def test_one_table_covers_both_devices() -> None:
    text = reference_markdown()
    assert text.count("## `models[].pools[]`") == 1
    assert "Only with `device: cuda`." in text
    assert "| `device` | `cpu`, `cuda` | required |" in text


@pytest.mark.engine
def test_every_argument_that_only_vllms_http_server_has_is_refused() -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    engine = {field.name for field in dataclasses.fields(AsyncEngineArgs)}
    server = set(vars(make_arg_parser(FlexibleArgumentParser()).parse_args([]))) - engine
    assert server - set(REFUSED) == set()
    assert set(REFUSED) - server - engine == set(), "refused, and vLLM does not have them"


@pytest.mark.engine
def test_our_engine_fields_are_vllms_but_for_the_three_that_are_ours() -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs

    engine = {field.name for field in dataclasses.fields(AsyncEngineArgs)}
    ours = set(CpuEngine.model_fields) | set(CudaEngine.model_fields)
    assert ours - engine == {"kernels", "extra", "kv_cache_gib"}
