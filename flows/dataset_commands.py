"""``fastvideo dataset``: run, plan, status, retry, publish."""

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flows.command import EXIT_CODES, add_command, at_least, print_result
from flows.keeping_commands import add_keeping_commands

if TYPE_CHECKING:
    from fastvideo.v1.dataset.config import RunConfig

_KEYS = "any key of the config may follow, dotted: --sampling.num_inference_steps 8 --shard_size 16"


def add_dataset_commands(commands: "argparse._SubParsersAction[Any]") -> None:
    """Adds the ``dataset`` command; each of its own sets ``run``, which returns the exit code."""
    dataset = commands.add_parser("dataset", help="make a data set of videos from a list of prompts")
    kinds = dataset.add_subparsers(required=True, metavar="COMMAND")
    for name, run, text in (
        ("run", _run, "make every video that is missing, then publish"),
        ("plan", _plan, "say what a run would make and cost; changes nothing"),
    ):
        command = add_command(kinds, name, run, text)
        command.add_argument("--prompts", metavar="URI", help="prompts: a file or folder, or a packaged list")
        _add_config(command)
        if name == "plan":
            command.add_argument("--price", metavar="X", type=at_least(0), help="money for a GPU-hour, to be quoted")
            command.epilog = f"{_KEYS}; exit codes: 0 planned, whatever is missing, 1 a mistake"
    _add_config(_retry_command(kinds))
    for name, run, text in (
        ("status", _status, "say what is done, failed and missing"),
        ("publish", _publish, "write the tables, the card and the contact sheet anew"),
    ):
        command = add_command(kinds, name, run, text)
        command.add_argument("--output", metavar="URI", required=True, help="the data set")
        command.add_argument("--run", metavar="NAME", dest="run_name", help="the run; the newest by default")
        if name == "status":
            text = "again and again, every so many seconds (10), until nothing is missing"
            command.add_argument("--watch", metavar="SECONDS", nargs="?", const=10.0, type=at_least(0.1), help=text)
    add_keeping_commands(kinds)


def _retry_command(kinds: "argparse._SubParsersAction[Any]") -> argparse.ArgumentParser:
    text = "take up failed samples again, and make what is missing; repeat the run's --engine.num_gpus and the like"
    command = add_command(kinds, "retry", _retry, text)
    command.add_argument("--run", metavar="NAME", dest="run_name", help="the run; the newest by default")
    return command


def _add_config(command: argparse.ArgumentParser) -> None:
    command.add_argument("--output", metavar="URI", help="the data set")
    command.add_argument("--model", metavar="DIR", help="model directory, URI or cached hub id")
    command.add_argument("--config", metavar="YAML", help="a file with keys of the config")
    command.epilog = f"{_KEYS}; {EXIT_CODES}"
    command.set_defaults(take_keys=parse_keys)


def parse_keys(arguments: Sequence[str]) -> dict[str, str]:
    """``--KEY VALUE`` and ``--KEY=VALUE`` by key; raises ``ValueError`` for anything else."""
    keys, rest = {}, list(arguments)
    while rest:
        key, equals, value = rest.pop(0).partition("=")
        if not key.startswith("--") or len(key) < 3:
            raise ValueError(f"{key!r} belongs to no option; keys of the config are written --KEY VALUE")
        if not equals:
            if not rest:
                raise ValueError(f"{key} needs a value")
            value = rest.pop(0)
        keys[key[2:]] = value
    return keys


def _config(options: argparse.Namespace, **defaults: str) -> "RunConfig":
    from fastvideo.v1.dataset.config import load_config, parse_config

    values = {**defaults, **(load_config(options.config) if options.config else {})}
    named = {name: getattr(options, name, None) for name in ("prompts", "output", "model")}
    return parse_config(values, {**options.keys, **{name: value for name, value in named.items() if value is not None}})


def _run(options: argparse.Namespace) -> int:
    config = _config(options)
    return _orchestrate(options, "generate_dataset", {"config": config})


def _retry(options: argparse.Namespace) -> int:
    config = _config(options, prompts="(those of the run)")
    return _orchestrate(options, "retry_failed", {"config": config, "run": options.run_name})


def _orchestrate(options: argparse.Namespace, flow_name: str, parameters: Mapping[str, Any]) -> int:
    """Runs a flow as a deployment would, with its progress on the terminal."""
    from flows.console import show_progress, show_summary
    from flows.local_server import prefect_server, quiet_prefect

    quiet_prefect(options.debug)
    with prefect_server():
        from flows import generate_dataset as flows
        from tasks.events import listening

        with show_progress() as listener, listening(listener):
            try:
                summary = getattr(flows, flow_name)(**parameters)
            except flows.RunIncomplete as incomplete:
                summary = incomplete.summary
    print_result(options, summary, show_summary)
    return int(summary["exit_code"])


def _plan(options: argparse.Namespace) -> int:
    from fastvideo.v1.dataset.plan.changes import find_changes
    from fastvideo.v1.dataset.plan.planning import plan_run
    from fastvideo.v1.dataset.plan.quote import quote
    from fastvideo.v1.dataset.progress.status import summarize
    from flows.quote_console import show_plan

    config = _config(options)
    planned = plan_run(config, write=False)
    quoted = quote(planned, config)
    changes = find_changes(planned, config, quoted)
    counts: dict[str, Any] = {"samples": planned.num_samples, "new": planned.num_new, "repeated": planned.num_repeated}
    rejected = [f"{row.source}: {row.reason}" for row in planned.rejected]
    status = summarize(planned.run, planned.scan).to_dict()
    counts["layouts"] = planned.told_layouts()
    counts["quote"] = {str(phase): part.to_dict() for phase, part in quoted.items()}
    counts["price"] = options.price
    counts["changes"] = changes.lines() if changes else []
    print_result(options, {**counts, "rejected": planned.num_rejected, "rejected_rows": rejected, **status}, show_plan)
    return 0


def _status(options: argparse.Namespace) -> int:
    if options.watch is not None:
        from flows.watch import watch

        return watch(options.output, options.run_name, options.watch, options.json)
    from fastvideo.v1.dataset.progress.status import run_status
    from flows.console import show_status

    status = run_status(options.output, options.run_name)
    print_result(options, status.to_dict(), show_status)
    return status.exit_code


def _publish(options: argparse.Namespace) -> int:
    from dataclasses import asdict

    from fastvideo.v1.dataset.progress.status import run_status
    from fastvideo.v1.dataset.publishing.publish import publish
    from fastvideo.v1.dataset.runs.run import open_run
    from flows.console import show_published

    opened = open_run(options.output, options.run_name)
    published = {**asdict(publish(opened)), "output": opened.output.uri("")}
    print_result(options, published, show_published)
    return run_status(opened.output, opened.name).exit_code
