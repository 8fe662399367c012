"""A cancelled run cancels the waves that it has started on pools, and no other."""

from types import SimpleNamespace
from uuid import uuid4

from prefect.states import Completed, Pending, Running

from flows import hooks


class FakeServer:
    def __init__(self, runs):
        self.runs, self.states = runs, {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def read_flow_runs(self, flow_run_filter):
        return [run for run in self.runs if run.parent_flow_run_id in flow_run_filter.parent_flow_run_id.any_]

    def set_flow_run_state(self, id, state):
        self.states[id] = state.type.value


def test_a_cancelled_run_cancels_its_waves_that_still_work(monkeypatch):
    run, pool = SimpleNamespace(id=uuid4()), uuid4()

    def wave(state, parent=run.id, deployment=pool):
        return SimpleNamespace(id=uuid4(), parent_flow_run_id=parent, deployment_id=deployment, state=state)

    at_work, waiting = wave(Running()), wave(Pending())
    ended, here, of_another = wave(Completed()), wave(Running(), deployment=None), wave(Running(), parent=uuid4())
    server = FakeServer([ended, at_work, here, of_another, waiting, wave(None)])
    monkeypatch.setattr(hooks, "get_client", lambda sync_client: server)
    hooks.cancel_waves(None, run, None)
    assert server.states == {at_work.id: "CANCELLING", waiting.id: "CANCELLING"}
