"""``ballast schema``: the config's JSON Schema, for editors."""

import json
from argparse import Namespace

from serving.config import json_schema


def run(arguments: Namespace) -> int:
    print(json.dumps(json_schema(), indent=2, ensure_ascii=False))
    return 0
