"""The ``fastvideo`` script. Nothing heavy is imported before a command runs."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence

from fastvideo.v1.cli import add_commands
from fastvideo.v1.dataset.objects.store_errors import StoreUnavailable
from fastvideo.v1.shown_text import shown
from flows.bench_command import add_bench_dataset
from flows.dataset_commands import add_dataset_commands

EXIT_MISTAKE, EXIT_AWAY, EXIT_INTERRUPTED = 1, os.EX_TEMPFAIL, 128 + signal.SIGINT


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command and exits with its code; a mistake is one line on standard error and exit code 1, an outage 75."""
    sys.exit(run(sys.argv[1:] if arguments is None else list(arguments)))


def run(arguments: list[str]) -> int:
    """The exit code of one command line."""
    debug = "--debug" in arguments
    try:
        options = _parse([argument for argument in arguments if argument != "--debug"])
        options.debug = debug
        return int(options.run(options))
    except KeyboardInterrupt:
        return _end("interrupted; the same command goes on from here", EXIT_INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_MISTAKE
    except Exception as error:
        if debug:
            raise
        is_away = isinstance(error, ConnectionError | StoreUnavailable)
        line = f"error: {' '.join(str(error).split()) or type(error).__name__}"
        return _end(line, EXIT_AWAY if is_away else EXIT_MISTAKE)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise ValueError(f"{message} (see `{self.prog} --help`)")


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = _Parser(prog="fastvideo", description="Video-diffusion inference and data sets of videos.")
    parser.add_argument("--debug", action="store_true", help="show tracebacks and logs; anywhere on the line")
    commands: argparse._SubParsersAction[argparse.ArgumentParser] = parser.add_subparsers(
        required=True, metavar="COMMAND", parser_class=_Parser
    )
    add_bench_dataset(add_commands(commands))
    add_dataset_commands(commands)
    options, rest = parser.parse_known_args(arguments)
    if hasattr(options, "take_keys"):
        options.keys = options.take_keys(rest)
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return options


def _end(message: str, code: int) -> int:
    print(f"fastvideo: {shown(message)}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
