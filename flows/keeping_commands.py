"""``fastvideo dataset``: verify, gc, copy, reproduce."""

import argparse
from typing import Any

from flows.command import EXIT_CODES, EXIT_DAMAGED, EXIT_MISSING, add_command, at_least, print_result


def add_keeping_commands(kinds: "argparse._SubParsersAction[Any]") -> None:
    """Adds the commands that look after what a data set has stored."""
    codes = f"{EXIT_CODES}, {EXIT_DAMAGED} damaged objects"
    verify = add_command(kinds, "verify", _verify, "read every object and say what is damaged, lost or orphaned", codes)
    verify.add_argument("--output", metavar="URI", required=True, help="the data set")
    which = verify.add_mutually_exclusive_group()
    which.add_argument("--run", metavar="NAME", dest="run_name", help="the run; the newest by default")
    which.add_argument("--all-runs", action="store_true", help="all runs, and the objects of none of them")
    verify.add_argument("--repair", action="store_true", help="put damaged objects aside, for a run to make them again")
    _add_gc(kinds)
    copy = add_command(kinds, "copy", _copy, "copy the whole data set to another place, or go on with that", codes)
    copy.add_argument("--output", metavar="URI", required=True, help="the data set")
    copy.add_argument("--to", metavar="URI", required=True, help="where the copy goes")
    _add_reproduce(kinds)


def _add_gc(kinds: "argparse._SubParsersAction[Any]") -> None:
    purpose = "delete what no run and no published table needs; without --yes only say what"
    gc = add_command(kinds, "gc", _gc, purpose, f"exit codes: 0 done, {EXIT_MISSING} a run came between, 1 a mistake")
    gc.add_argument(
        "--output", metavar="URI", required=True, action="append", help="a data set; all that share a store"
    )
    text = "a run that is wanted no more; its folder's URI, if several of the outputs have one of that name"
    gc.add_argument("--drop-run", metavar="NAME", action="append", default=[], help=text)
    text = "leave what is younger, 24 hours by default"
    gc.add_argument("--older-than", metavar="HOURS", type=at_least(0), default=24.0, help=text)
    gc.add_argument("--yes", action="store_true", help="delete")


def _add_reproduce(kinds: "argparse._SubParsersAction[Any]") -> None:
    codes = f"exit codes: 0 reproduced, {EXIT_MISSING} not stored, {EXIT_DAMAGED} otherwise, 1 a mistake"
    command = add_command(
        kinds, "reproduce", _reproduce, "make one sample again and compare it with what is there", codes
    )
    command.add_argument("id", metavar="ID", help="the sample's id, or how it begins")
    command.add_argument("--output", metavar="URI", required=True, help="the data set")
    command.add_argument("--run", metavar="NAME", dest="run_name", help="the run; the newest by default")
    command.add_argument("--model", metavar="DIR", help="where the run's model is now, if not where it was")
    command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to make it")
    text = "decibels that the video must reach where bytes need not be equal, 30 by default"
    command.add_argument("--psnr", metavar="DB", type=at_least(0), default=30.0, help=text)


def _verify(options: argparse.Namespace) -> int:
    from fastvideo.v1.dataset.keeping.verify import runs_to_verify, verify
    from fastvideo.v1.dataset.objects.store import Store
    from fastvideo.v1.dataset.progress.status import run_status
    from flows.keeping_console import counting, show_verification

    output = Store(options.output)
    chosen, every = runs_to_verify(output, options.run_name, all_runs=options.all_runs)
    with counting("verified") as progress:
        found = verify(output, chosen, every, repair=options.repair, progress=progress)
    statuses = [run_status(output, run.name) for run in chosen]
    code = EXIT_DAMAGED if found.is_damaged else max([EXIT_MISSING * found.has_gaps, *(s.exit_code for s in statuses)])
    result = {**found.to_dict(), "runs": [status.to_dict() for status in statuses], "exit_code": code}
    print_result(options, result, show_verification)
    return code


def _gc(options: argparse.Namespace) -> int:
    from fastvideo.v1.dataset.keeping.collect import collect_garbage
    from fastvideo.v1.dataset.objects.store import Store
    from flows.keeping_console import counting, show_collected

    outputs = [Store(output) for output in options.output]
    settings = {"drop": options.drop_run, "min_age_hours": options.older_than, "delete": options.yes}
    with counting("deleted" if options.yes else "found") as progress:
        collected = collect_garbage(outputs, **settings, progress=progress)
    print_result(options, collected.to_dict(), show_collected)
    return 0 if collected.is_whole else EXIT_MISSING


def _copy(options: argparse.Namespace) -> int:
    from fastvideo.v1.dataset.keeping.copying import copy_output
    from fastvideo.v1.dataset.objects.store import Store
    from flows.keeping_console import counting, show_copied

    target = Store(options.to)
    with counting("copied") as progress:
        report = copy_output(Store(options.output), target, progress)
    print_result(options, {**report.to_dict(), "target": target.uri("")}, show_copied)
    return 0 if report.is_whole else EXIT_DAMAGED


def _reproduce(options: argparse.Namespace) -> int:
    from dataclasses import replace

    from fastvideo.v1.dataset.runs.run import open_run
    from fastvideo.v1.worker.reproduce import reproduce
    from flows.keeping_console import show_reproduction

    run = open_run(options.output, options.run_name)
    if options.model:
        run = replace(run, model_path=options.model)
    made = reproduce(run, options.id, {"device": options.device})
    code = 0 if made.is_reproduced(options.psnr) else EXIT_MISSING if made.is_missing else EXIT_DAMAGED
    print_result(options, {**made.to_dict(), "exit_code": code}, show_reproduction)
    return code
