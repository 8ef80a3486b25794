"""``ballast check``: what is wrong with a config, or what would run where."""

import json
from argparse import Namespace
from dataclasses import asdict

from serving.commands.settings import load_settings
from serving.lifecycle.record import running_server
from serving.machine import observe_machine
from serving.plan import plan, read_specs
from serving.plan_text import plan_as_json, render_plan
from serving.tuned import read_tuned

CANNOT_START_EXIT_CODE = 3


def run(arguments: Namespace) -> int:
    """Returns 0 when it could start here, 3 when not. Raises ConfigError when the file itself is wrong."""
    path, config = load_settings(arguments)
    server = config.server
    record = running_server(server.state_dir) if server.state_dir.exists() else None
    own_ports = (record.port, record.admin_port) if record else ()  # a running server is no obstacle to itself
    endpoints = [(server.host, server.port), (server.admin_host, server.admin_port)]
    free = [endpoint for endpoint in endpoints if endpoint[1] not in own_ports]
    found = plan(config, observe_machine(server.state_dir, free), read_specs(config))
    tuned = read_tuned(path)
    if arguments.json:
        evidence = asdict(tuned) | {"stale_keys": tuned.stale_keys(config)} if tuned else None
        print(json.dumps({"config": str(path), **plan_as_json(found), "tuned": evidence}, default=str))
    else:
        print(f"{path}: no problem in the file\n\n{render_plan(found)}")
        if tuned is not None:
            print(f"\n{tuned.line(config)}")
    return CANNOT_START_EXIT_CODE if found.errors else 0
