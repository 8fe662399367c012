"""What every command of a data set has: how it is added, and how its result is printed."""

import argparse
import json
import math
from collections.abc import Callable
from typing import Any

EXIT_CODES = (
    "exit codes: 0 all done, 2 samples failed, 3 samples missing, 1 a mistake, 75 a store or server is away, "
    "130 interrupted (Ctrl-C)"
)
EXIT_MISSING, EXIT_DAMAGED = 3, 4


def add_command(
    kinds: "argparse._SubParsersAction[Any]", name: str, run: Any, text: str, epilog: str = EXIT_CODES
) -> argparse.ArgumentParser:
    """A command whose ``run`` takes the options and returns the exit code."""
    command: argparse.ArgumentParser = kinds.add_parser(name, help=text, allow_abbrev=False, epilog=epilog)
    command.add_argument("--json", action="store_true", help="print the result as JSON")
    command.set_defaults(run=run)
    return command


def at_least(least: float) -> Callable[[str], float]:
    """The ``type`` of an option that takes a number of at least ``least``."""

    def parse(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number) or number < least:
            raise argparse.ArgumentTypeError(f"{text!r} must be a number of at least {least:g}")
        return number

    return parse


def print_result(options: argparse.Namespace, result: dict[str, Any], show: Callable[[dict[str, Any]], None]) -> None:
    """The result of a command, as JSON or as ``show`` shows it."""
    if options.json:
        print(json.dumps(result))
    else:
        show(result)
