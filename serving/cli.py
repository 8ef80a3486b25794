"""``ballast …``: reads the command line and calls one command, which is imported only then."""

import argparse
import difflib
import importlib
import json
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from serving.errors import ConfigError, OperatorError

INTERRUPTED_EXIT_CODE = 130
MAX_SECONDS = 86_400.0


class _Parser(argparse.ArgumentParser):
    """Suggests the nearest command for one that does not exist."""

    def error(self, message: str) -> NoReturn:
        if unknown := re.match(r"argument \w+: invalid choice: '(.*)' \(choose from (.*)\)", message):
            known = re.findall(r"'([^']*)'", unknown[2])
            close = difflib.get_close_matches(unknown[1], known, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"there are {', '.join(known)}."
            message = f"no command '{unknown[1]}'; {hint}"
        super().error(message)


_BENCHMARKS = {
    "serve": "send load to any OpenAI-compatible server, and say how it served",
    "sweep": "find the knee, and the highest rate that holds the SLO",
    "soak": "the same load for hours: do memory, descriptors or threads grow?",
    "chaos": "break a running Ballast at planned times while load is sent: what does it cost, and how long?",
    "compare": "two runs: is the second one worse? Exit code 1 if so",
    "report": "a run as one HTML page, with its charts as PNG beside it",
    "kernels": "the sampler on this CPU, against vLLM's and plain torch",
    "overhead": "what all of Ballast costs over raw vLLM, by way of the same engine",
    "peers": "the same load on Ballast, raw vLLM, Ray Serve LLM, routers and LiteLLM",
    "autoscale": "what the autoscaler is worth, simulated",
    "calibrate": "what an engine step costs here; prints the `speed` section of each pool",
}
"""By subject; --help after it lists its options."""


def parser() -> argparse.ArgumentParser:
    """Every command with its options; ``module`` names the file under serving/commands that does the work."""
    top = _Parser(
        prog="ballast",
        description="A self-hosted inference server: vLLM replicas behind one OpenAI-compatible endpoint.",
    )
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    as_json = _Parser(add_help=False)
    as_json.add_argument("--json", action="store_true", help="answer in JSON")
    config = _Parser(add_help=False)
    config.add_argument(
        "--config", metavar="FILE", help="config file (default: $BALLAST_CONFIG, ./ballast.yaml, the bundled one)"
    )
    ports = _Parser(add_help=False)
    ports.add_argument("--host", help="listen there instead of server.host")
    ports.add_argument("--port", type=_port, help="instead of server.port")
    ports.add_argument("--admin-port", type=_port, help="instead of server.admin_port")

    up = commands.add_parser(
        "up", parents=[config, ports, as_json], help="start the server in the foreground; Ctrl-C stops it"
    )
    up.add_argument(
        "--logs", action="store_true", help="show the server's JSON log too (always, where stdout is no terminal)"
    )
    up.add_argument("--engine", default="vllm", choices=("vllm", "scripted"), help=argparse.SUPPRESS)
    up.add_argument("--engine-args", default="null", help=argparse.SUPPRESS)
    commands.add_parser("down", parents=[config, as_json], help="stop the server")
    status = commands.add_parser("status", parents=[config, as_json], help="what is running, and how busy it is")
    status.add_argument("--watch", action="store_true", help="again every second, until Ctrl-C")
    commands.add_parser(
        "check", parents=[config, ports, as_json], help="what is wrong with a config, and what would run where"
    )
    _add_apply(
        commands.add_parser(
            "apply", parents=[config, as_json], help="give the running server a changed config, losing no request"
        )
    )
    commands.add_parser("schema", help="print the config's JSON Schema")
    _add_keys(commands.add_parser("keys", help="create, list and revoke API keys"), config, as_json)
    commands.add_parser("models", parents=[config, as_json], help="the models of a config, their pools and prices")
    autoscale = commands.add_parser("autoscale", help="why the fleet is the size it is")
    looks = autoscale.add_subparsers(dest="action", metavar="ACTION", required=True)
    explain = looks.add_parser("explain", parents=[config, as_json], help="the last decision, in words")
    explain.add_argument("--at", metavar="TIME", help="the one in force then: 14:30, 2031-01-31T14:30:00, Unix seconds")
    repeat = looks.add_parser("replay", parents=[as_json], help="decide again what a file says was decided")
    repeat.add_argument("file", metavar="FILE", help="a decisions.jsonl")
    _add_benchmarks(commands.add_parser("bench", help="load tests of any OpenAI-compatible server; simulations"))
    _add_handed_on(commands, "tune", "find the settings of a pool that make tokens cheapest at the SLO")
    commands.add_parser("version", parents=[as_json], help="versions of Ballast and of what it runs on")
    return top


def _add_keys(keys: argparse.ArgumentParser, config: _Parser, as_json: _Parser) -> None:
    actions = keys.add_subparsers(dest="action", metavar="ACTION", required=True)
    create = actions.add_parser("create", parents=[config, as_json], help="create a key; it is shown once")
    create.add_argument("name")
    create.add_argument(
        "--model", action="append", metavar="NAME", help="a model that it may use (repeat for more; default: all)"
    )
    create.add_argument("--expires", default="never", metavar="WHEN", help="30d, 12h, 2031-01-31 or never")
    create.add_argument("--tenant", default="", help="whom its use is accounted to (default: its name)")
    actions.add_parser("list", parents=[config, as_json], help="every key ever created")
    revoke = actions.add_parser("revoke", parents=[config, as_json], help="make a key invalid, for good")
    revoke.add_argument("key", metavar="ID_OR_NAME")


def _add_apply(apply: argparse.ArgumentParser) -> None:
    apply.add_argument("--dry-run", action="store_true", help="only show what would change")
    apply.add_argument("--yes", action="store_true", help="do not ask")
    back = "go back to the old config when the new one is not up by then (default: %(default)g)"
    apply.add_argument("--timeout", type=_seconds, default=900.0, metavar="SECONDS", help=back)


def _add_benchmarks(bench: argparse.ArgumentParser) -> None:
    subjects = bench.add_subparsers(dest="subject", metavar="SUBJECT", required=True)
    for subject, what in _BENCHMARKS.items():
        _add_handed_on(subjects, subject, what)


def _add_handed_on(commands: "argparse._SubParsersAction[Any]", name: str, what: str) -> None:
    """A command whose options are its own. Without a prefix, nothing looks like an option here."""
    command = commands.add_parser(name, add_help=False, prefix_chars="\0", help=what)
    command.add_argument("rest", nargs=argparse.REMAINDER)


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:6]) <= 65535):
        raise argparse.ArgumentTypeError("must be a port, 1 to 65535")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.0 < seconds <= MAX_SECONDS:
        raise argparse.ArgumentTypeError(f"must be seconds, up to {MAX_SECONDS:g}")
    return seconds


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. An operator's mistake is told in plain words, with its own exit code."""
    options = parser().parse_args(arguments)
    command = importlib.import_module(f"serving.commands.{options.command}")
    try:
        return int(command.run(options))
    except OperatorError as error:
        _tell(error, as_json=getattr(options, "json", False))
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED_EXIT_CODE
    except BrokenPipeError:  # the reader of a pipe has left, as `head` does
        sys.stderr.close()
        return 0


def _tell(error: OperatorError, as_json: bool) -> None:
    if not as_json:
        print(f"ballast: {error}", file=sys.stderr)
        return
    problems = error.problems if isinstance(error, ConfigError) else ()
    found = [
        {"path": item.path, "value": item.value, "reason": item.reason, "suggestion": item.suggestion}
        for item in problems
    ]
    print(json.dumps({"error": {"message": str(error), "exit_code": error.exit_code, "problems": found}}))


if __name__ == "__main__":
    sys.exit(main())
