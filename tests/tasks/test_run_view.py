"""What Prefect's UI shows of a whole run, and what infra/automations.yaml is told of one over its error budget."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import yaml
from jinja2 import Template

from fastvideo.v1.dataset.plan.planning import plan_run
from fastvideo.v1.dataset.progress.failures import record_failure
from fastvideo.v1.dataset.waves.wave_report import PhaseReport, WaveReport
from fastvideo.v1.pipelines.phase import Phase
from tasks import run_view
from tasks.run_view import RunView

AUTOMATIONS = Path(__file__).parents[2] / "infra" / "automations.yaml"


class Artifact:
    """Stands for those of Prefect's UI; ``shown`` is what they show last, by kind."""

    shown: ClassVar[dict[str, Any]] = {}

    def __init__(self, kind: str, *_: str) -> None:
        self.kind = kind

    def show(self, data: Any) -> None:
        self.shown[self.kind] = data


@pytest.fixture
def told(make_config, monkeypatch) -> dict[str, list[WaveReport]]:
    """What the waves at work have told, for the view to read."""
    reports: dict[str, list[WaveReport]] = {}
    monkeypatch.setattr(run_view, "LiveArtifact", Artifact)
    monkeypatch.setattr(run_view, "read_reports", lambda run, wave: reports[wave])
    return reports


def report(**committed: int) -> list[WaveReport]:
    return [WaveReport(phases={name: PhaseReport(total=20, committed=n) for name, n in committed.items()}, seconds=1.0)]


def status(**done: int) -> dict[str, dict[str, dict[str, int]]]:
    return {"phases": {name: {"total": 20, "done": n, "failed": 0, "blocked": 0} for name, n in done.items()}}


def test_what_a_scan_has_counted_is_not_counted_again_as_told(make_config, told):
    config = make_config('{"prompt": "a red ball"}')
    working = {"first": None, "second": None}
    view = RunView(config, status(denoise=0, decode=0) | {"run": plan_run(config).run.name}, working)

    def decided() -> list[int]:
        view.show()
        return [int(count) for count in re.findall(r"^\| \w+ \| (\d+) of 20 \|", Artifact.shown["markdown"], re.M)]

    told |= {"first": report(denoise=6, decode=2), "second": report(denoise=3)}
    assert decided() == [9, 2]
    view.count(status(denoise=9, decode=2))
    assert decided() == [9, 2], "the scan found what both had told"
    told |= {"first": report(denoise=8, decode=3), "second": report(denoise=4)}
    assert decided() == [12, 3]
    working.pop("first")
    view.close_wave("first", None, None, {"reports": [one.to_dict() for one in report(denoise=8, decode=8)]})
    assert decided() == [12, 8], "nor at the end of a wave"
    told["second"] = report(denoise=1)
    assert decided() == [11, 8], "its runner began anew"
    view.count(status(denoise=13, decode=8))
    assert decided() == [13, 8]


def test_a_run_over_its_error_budget_names_samples_and_causes(make_config, monkeypatch):
    config = make_config('{"prompt": "a"}', '{"prompt": "b"}')
    run = plan_run(config).run
    first, second = (sample.id for sample in run.iter_samples())
    record_failure(run, Phase.DENOISE, first, "ValueError: NaN latents", "", 3)
    record_failure(run, Phase.DECODE, second, "OSError: no codec", "", 3)
    events = []
    monkeypatch.setattr(run_view, "emit_event", lambda **event: events.append(event))
    monkeypatch.setattr(run_view, "flow_run", SimpleNamespace(id="1-2", name="cats"))
    run_view.tell_over_budget(config, run.name, True)
    (event,) = events
    assert event["payload"]["failed_samples"] == [
        f"denoise {first}: ValueError: NaN latents", f"decode {second}: OSError: no codec",
    ]  # fmt: skip
    (listener,) = (one for one in yaml.safe_load(AUTOMATIONS.read_text())["automations"] if "over" in one["name"])
    assert listener["trigger"]["expect"] == [event["event"]]
    assert event["resource"] == {"prefect.resource.id": "prefect.flow-run.1-2", "prefect.resource.name": "cats"}
    body = Template(listener["actions"][0]["body"].replace("flow_run|ui_url", "link"))
    assert f"denoise {first}: ValueError: NaN latents; decode" in body.render(event=event | {"resource": {}})
    waiting, ended = (
        body.render(event={"payload": event["payload"] | {"waits": waits}, "resource": {}}) for waits in (True, False)
    )
    assert "resume it" in waiting and "resume" not in ended and "retry" in ended
