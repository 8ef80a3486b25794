"""``ballast apply``: give the server that runs a changed config, without losing a request."""

import json
import sys
from argparse import Namespace
from pathlib import Path

from serving.change import plan_change
from serving.change_text import change_as_json, render_change
from serving.commands.settings import load_file
from serving.config import Config
from serving.errors import MachineError, OperatorError, StateError
from serving.lifecycle.control import Apply, InForce, Report, apply
from serving.lifecycle.record import ServerRecord, running_server
from serving.machine import observe_machine
from serving.plan import plan, read_specs

DECLINED_EXIT_CODE = 1


def run(arguments: Namespace) -> int:
    """Returns 0 when the config is in force, or could be (``--dry-run``), and 1 when somebody said no. What the server
    was told over its file when it was started still holds.

    Raises ConfigError for a wrong file and for keys that only a restart can change, MachineError when it does not fit
    this machine or does not come up, StateError when no server runs.
    """
    path, said = load_file(arguments)
    record, in_force = _running(said)
    config = record.overriding(said)
    change = plan_change(in_force.config, config)
    change.check_is_live(str(path))
    check_machine(config)
    if arguments.json:
        print(json.dumps({"event": "change", **change_as_json(change)}), flush=True)
    else:
        print(render_change(change), flush=True)
    if arguments.dry_run or change.is_empty:
        return 0
    if not arguments.yes and not _is_wanted():
        print("Nothing was changed.", file=sys.stderr)
        return DECLINED_EXIT_CODE
    return _follow(arguments, Path(record.runtime_dir), Apply(config, change.old_version, arguments.timeout))


def _running(config: Config) -> tuple[ServerRecord, InForce]:
    """The server over the config's state folder, and what it runs with. Raises StateError."""
    state_dir = config.server.state_dir
    record = running_server(state_dir) if state_dir.exists() else None
    if record is None:
        raise StateError(f"No server runs over {state_dir}. Start one with: ballast up")
    in_force = InForce.read(Path(record.runtime_dir))
    if in_force is None:
        raise StateError(f"The server (process {record.pid}) is still starting; try again when it is ready.")
    return record, in_force


def check_machine(config: Config) -> None:
    """As `ballast up` does, but for the ports, which are the running server's. Raises MachineError."""
    found = plan(config, observe_machine(config.server.state_dir, []), read_specs(config))
    if found.errors:
        lines = [f"{error.path}: {error.message}\n  -> {error.action}" for error in found.errors]
        raise MachineError("\n".join(["This machine cannot run it:", *lines]))


def _is_wanted() -> bool:
    if not sys.stdin.isatty():
        raise OperatorError("nobody is here to be asked; look at it with --dry-run, then say --yes")
    print("\nApply it? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _follow(arguments: Namespace, runtime_dir: Path, request: Apply) -> int:
    """Show how far it is. Raises MachineError when it fails, StateError when the server ends or refuses."""
    try:
        for report in apply(runtime_dir, request):
            match report.kind:
                case "failed":
                    raise MachineError(report.message)
                case "refused":
                    raise StateError(f"Nothing was changed: {report.message}.")
                case "step" | "applied":
                    _tell(arguments, report)
                    if report.is_last:
                        return 0
    except KeyboardInterrupt:
        print("The server goes on with it: ballast status says which config is in force.", file=sys.stderr)
        raise
    raise StateError("the server has ended meanwhile")


def _tell(arguments: Namespace, report: Report) -> None:
    if arguments.json:
        print(json.dumps({"event": report.kind, "message": report.message}), flush=True)
    else:
        print(f"  {report.message}" if report.kind == "step" else report.message, flush=True)
