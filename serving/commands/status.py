"""``ballast status``: what is running and how busy it is, as the admin port tells it."""

import http.client
import json
import time
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table

from serving.commands.console import console
from serving.commands.settings import load_file
from serving.config import Config
from serving.config.pool import Pool
from serving.lifecycle.control import InForce
from serving.lifecycle.record import ServerRecord, running_server
from serving.protocol.board import STALE_S

TIMEOUT_S = 5.0
REFRESH_S = 1.0
NOT_READY_EXIT_CODE = 1

Status = Mapping[str, Any]
"""The body of /admin/status."""


def run(arguments: Namespace) -> int:
    """Returns 0 when the server is ready, 1 when it is not or does not run."""
    _, config = load_file(arguments)
    record, status = observe(config)
    if arguments.json:
        in_force = in_force_of(record)
        facts = {
            "running": record is not None,
            "ready": bool(status and status["ready"]),
            "config": {"version": in_force.version, "since_s": in_force.since_s} if in_force else None,
        }
        print(json.dumps({**facts, "status": status}))
    elif arguments.watch:
        _watch(config)
    else:
        console().print(render(config, record, status, time.time()))
    return 0 if status and status["ready"] else NOT_READY_EXIT_CODE


def observe(config: Config) -> tuple[ServerRecord | None, Status | None]:
    """The running server and what it says; None when there is none, or it does not answer."""
    record = running_server(config.server.state_dir) if config.server.state_dir.exists() else None
    if record is None:
        return None, None
    connection = http.client.HTTPConnection(config.server.admin_host, record.admin_port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/admin/status")
        response = connection.getresponse()
        status: Status | None = json.loads(response.read()) if response.status == 200 else None
        return record, status
    except (OSError, http.client.HTTPException, ValueError):
        return record, None
    finally:
        connection.close()


def in_force_of(record: ServerRecord | None) -> InForce | None:
    """The config that the server runs with; None when there is none yet."""
    return InForce.read(Path(record.runtime_dir)) if record else None


def render(config: Config, record: ServerRecord | None, status: Status | None, now_s: float) -> RenderableType:
    """Words and a table; a pool without a replica has a row too."""
    if record is None:
        return f"No server runs over {config.server.state_dir}. Start one with: ballast up"
    up_s = now_s - record.started_at_s
    where = f"http://{record.host}:{record.port}, process {record.pid}, up {_duration(up_s)}"
    if status is None:
        return f"Starting, or not answering on its admin port {record.admin_port}: {where}"
    state = "Ready" if status["ready"] else "Not ready"
    keys = "keys required" if status.get("keys_required") else "no keys"
    lines = [f"{state}: {where}, {status['in_flight']} in flight, {keys}"]
    if (in_force := in_force_of(record)) is not None:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(in_force.since_s))
        is_as_said = in_force.config == record.overriding(config)
        pending = "" if is_as_said else "; the file says another: ballast apply --dry-run"
        lines.append(f"Config {in_force.version}, in force since {since}{pending}")
    if status.get("key_store_error"):
        lines.append(f"The key store cannot be read: {status['key_store_error']}")
    fleet = status.get("fleet")
    tables = [_replicas(config, status), *([_fleet(fleet)] if fleet else [])]
    return Group(*lines, *tables)


def _fleet(fleet: Mapping[str, Any]) -> Table:
    """What the autoscaler wants of each pool, and what its tokens cost: by use, and by all that is paid for."""
    table = Table("Model", "Pool", box=None, pad_edge=False, title_justify="left", title="")
    for heading in ("Target", "Ready", "Starting", "USD/h", "USD/Mtok used", "USD/Mtok paid"):
        table.add_column(heading, justify="right")
    table.add_column("Why")
    for model, entry in fleet["models"].items():
        for pool, row in entry["pools"].items():
            table.add_row(
                model,
                pool,
                *(str(row[name]) for name in ("target", "num_ready", "num_starting")),
                f"{row['usd_per_hour']:.2f}",
                _usd(row["usage_usd_per_million_tokens"]),
                _usd(row["allocation_usd_per_million_tokens"]),
                row["binding"] if row["is_available"] else "not available: no such device, or starts have failed",
            )
    if fleet["age_s"] > STALE_S:
        table.caption = f"The autoscaler was last heard {fleet['age_s']:.0f} s ago."
    return table


def _usd(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _replicas(config: Config, status: Status) -> Table:
    table = Table("Model", "Pool", "Replica", "State", box=None, pad_edge=False)
    for heading in ("Running", "Waiting", "KV use", "Tokens/s", "Load age", "Streams"):
        table.add_column(heading, justify="right")
    replicas = status["replicas"]
    for model in config.models:
        for pool in model.pools:
            found = [entry for entry in replicas if (entry["model"], entry["pool"]) == (model.name, pool.name)]
            for entry in found:
                table.add_row(model.name, pool.name, *_cells(entry))
            if not found:
                table.add_row(model.name, pool.name, "none", _state_of_empty(status, model.name, pool))
    return table


def _state_of_empty(status: Status, model: str, pool: Pool) -> str:
    """Of a pool without a replica, by the autoscaler's word where it has spoken."""
    fleet = status.get("fleet") or {"models": {}}
    row = fleet["models"].get(model, {}).get("pools", {}).get(pool.name)
    if row is None:
        return "starting" if pool.replicas.min else "idle"
    if not row["is_available"]:
        return "not available"
    return "starting" if row["num_starting"] else "idle"


def _cells(entry: Mapping[str, Any]) -> tuple[str, ...]:
    load = entry.get("load") or {}
    state = "draining" if load.get("draining") else "ready" if entry["ready"] else "not ready"
    age_s = entry.get("load_age_s")
    return (
        str(entry["replica"]),
        state,
        str(load.get("running", "")),
        str(load.get("waiting", "")),
        f"{load['kv_cache_usage']:.0%}" if "kv_cache_usage" in load else "",
        f"{load['tokens_per_s']:.0f}" if "tokens_per_s" in load else "",
        "" if age_s is None else f"{age_s:.1f} s",
        str(entry["streams"]),
    )


def _duration(seconds: float) -> str:
    minutes, rest_s = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest_s} s" if minutes else f"{rest_s} s"


def _watch(config: Config) -> None:
    with Live(console=console(), auto_refresh=False) as live:
        while True:
            live.update(render(config, *observe(config), time.time()), refresh=True)
            time.sleep(REFRESH_S)
