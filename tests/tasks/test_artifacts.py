"""What an artifact that changes in place costs the Prefect server."""

from typing import Any
from uuid import uuid4

import pytest

from tasks import artifacts
from tasks.artifacts import LiveArtifact


class FakeServer:
    """Has no ``update_artifact``: Prefect's sends all of the data as an event, too, which is kept for a week."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def request(self, method: str, path: str, path_params: dict[str, Any], json: dict[str, Any]) -> None:
        self.sent.append((method, path.format(**path_params), json))


@pytest.mark.parametrize(
    ("kind", "first", "second", "stored"),
    [("table", [{"a": 1}], [{"a": 2}], '[{"a": 2}]'), ("markdown", "a", "b", "b"), ("progress", 1.0, 2.5, 2.5)],
)
def test_only_what_changes_is_sent(monkeypatch, kind, first, second, stored):
    id, server, made = uuid4(), FakeServer(), []
    monkeypatch.setattr(artifacts, "get_client", lambda sync_client: server)
    monkeypatch.setattr(artifacts, f"create_{kind}_artifact", lambda data, **_: made.append(data) or id)
    artifact = LiveArtifact(kind, "key", "what it shows")
    for data in (first, first, second, second):
        artifact.show(data)
    assert made == [first] and server.sent == [("PATCH", f"/artifacts/{id}", {"data": stored})]
