"""``status --watch``: a line each time, or a picture, until nothing is missing."""

import io
import json
import threading

from rich.console import Console

from fastvideo.v1.dataset.plan.planning import plan_run
from flows import watch
from flows.cli import run

PROMPTS = [f'{{"prompt": "p{number}"}}' for number in range(3)]


def test_it_watches_until_nothing_is_missing(make_config, make_whole, capsys, monkeypatch) -> None:
    config = make_config(*PROMPTS)
    plan_run(config)
    work = threading.Thread(target=make_whole, args=[config])

    def tell(view, line=watch.line):
        if work.ident is None:  # all is made once the first line is told
            work.start()
        return line(view)

    monkeypatch.setattr(watch, "line", tell)
    assert run(["dataset", "status", "--output", config.output, "--watch", "0.1"]) == 0
    work.join()
    lines = capsys.readouterr().out.splitlines()
    assert "encode 0/4; denoise 0/3; decode 0/3; no rate to tell the end by yet" in lines[0]
    assert "encode 4/4; denoise 3/3; decode 3/3; nothing is missing" in lines[-1]


def test_a_program_gets_json(make_config, make_whole, capsys) -> None:
    config = make_config(*PROMPTS)
    make_whole(config)
    assert run(["dataset", "status", "--output", config.output, "--watch", "--json"]) == 0
    (view,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert view["seconds_left"] == 0 and view["rates"]["decode"]["seconds"] == 2.0


def test_the_picture_tells_rate_failures_and_the_end() -> None:
    counts = {"total": 10, "done": 4, "failed": 1, "blocked": 0, "missing": 5, "bytes": 4_000_000}
    rate = {"per_hour": 60.0, "seconds": 55.0, "last": 970.0}
    view = {"run": "abc", "time": 1000.0, "seconds_left": 300.0 * 60}
    view |= {"phases": {"denoise": counts}, "rates": {"denoise": rate}}
    console = Console(width=120, file=io.StringIO())
    console.print(watch.picture(view))
    text = console.file.getvalue()
    for word in ("run abc", "4/10", "4.0 MB", "60", "30 s ago", "about 5 h 00 min left"):
        assert word in text
