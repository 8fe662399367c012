"""What a run does that stands still over its error budget: a deployment's waits for a person, any other ends."""

from types import SimpleNamespace

import pytest

from fastvideo.v1.dataset.config import RunConfig
from flows import generate_dataset

CONFIG = RunConfig(prompts="p", output="o", error_budget=0.1)
MISSING, ONLY_FAILED = 3, 2


@pytest.fixture
def calls(monkeypatch):
    made = {"told": [], "suspended": []}
    monkeypatch.setattr(
        generate_dataset, "tell_over_budget", lambda config, run, waits: made["told"].append((run, waits))
    )
    monkeypatch.setattr(generate_dataset, "suspend_flow_run", lambda key: made["suspended"].append(key))
    return made


@pytest.mark.parametrize(
    "deployment, exit_code, waits",
    [("nightly", MISSING, True), (None, MISSING, False), ("nightly", ONLY_FAILED, False)],
)
def test_only_what_prefect_can_start_again_and_lacks_something_waits(calls, monkeypatch, deployment, exit_code, waits):
    monkeypatch.setattr(generate_dataset, "deployment", SimpleNamespace(id=deployment))
    generate_dataset._pause(CONFIG, {"run": "abc", "exit_code": exit_code})
    assert calls["told"] == [("abc", waits)] and len(calls["suspended"]) == waits


def test_a_resumed_run_can_wait_again(calls, monkeypatch):
    monkeypatch.setattr(generate_dataset, "deployment", SimpleNamespace(id="nightly"))
    for _ in range(2):
        generate_dataset._pause(CONFIG, {"run": "abc", "exit_code": MISSING})
    first, second = calls["suspended"]
    assert first != second, "Prefect passes over a pause whose key it has seen"
