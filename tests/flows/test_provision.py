"""What a fresh server lacks is made, however often that is interrupted; tests/end_to_end/test_night.py sees it all."""

from types import SimpleNamespace

import pytest

from flows import provision
from flows.provision import provision as make_what_is_missing


class FakeServer:
    def __init__(self):
        self.pools, self.deployments, self.automations = [], {}, 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def read_work_pools(self):
        return [SimpleNamespace(name=name) for name in self.pools]

    def read_worker_metadata(self):
        return {"prefect": {"process": {"default_base_job_configuration": {}}}}

    def create_work_pool(self, pool):
        self.pools.append(pool.name)

    def read_deployments(self):
        return [SimpleNamespace(id=name, name=name, parameters=given) for name, given in self.deployments.items()]

    def update_deployment(self, id, update):
        self.deployments[id] = update.parameters


def test_a_start_that_was_broken_off_is_made_good_by_the_next(monkeypatch):
    server, dies = FakeServer(), {"deploy"}

    def deploy(names):
        for name in names:
            server.deployments[name] = {"config": {"prompts": "shapes", "output": f"~/fastvideo/{name}"}}
        if "deploy" in dies:
            raise KeyboardInterrupt

    monkeypatch.setattr(provision, "get_client", lambda sync_client: server)
    monkeypatch.setattr(provision, "_make_bucket", lambda name: None)
    monkeypatch.setattr(provision, "_deploy", deploy)
    monkeypatch.setattr(provision, "apply_automations", lambda path: setattr(server, "automations", 3))
    with pytest.raises(KeyboardInterrupt):
        make_what_is_missing("s3://videos", "fastvideo")
    dies.clear()
    server.deployments["somebody's own"] = {"config": {"output": "~/fastvideo/own"}}
    make_what_is_missing("s3://videos", "fastvideo")
    assert server.pools == ["fastvideo"] and server.automations == 3
    assert server.deployments.pop("somebody's own") == {"config": {"output": "~/fastvideo/own"}}
    assert {given["config"]["output"] for given in server.deployments.values()} == {
        f"s3://videos/{name}" for name in server.deployments
    }
    assert {"nightly", "on-pools", "retry", "gpu"} == set(server.deployments)
