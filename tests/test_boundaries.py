"""What a process that runs a gateway loads: nothing of the engine's world beyond what Ray Serve itself brings."""

import json
import subprocess
import sys

HEAVY = ("torch", "triton", "vllm", "transformers", "numpy")
PROGRAM = f"""
import json, sys
import ray.serve
brought = [name for name in {HEAVY!r} if name in sys.modules]
import serving.gateway.ingress
print(json.dumps([brought, [name for name in {HEAVY!r} if name in sys.modules]]))
"""


def test_a_gateway_imports_no_engine_and_no_tensor_library() -> None:
    run = subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True, timeout=120)
    by_ray, with_gateway = json.loads(run.stdout.splitlines()[-1])
    assert with_gateway == by_ray
    assert not {"torch", "triton", "vllm", "transformers"} & set(with_gateway)
