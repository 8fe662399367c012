"""prefect.yaml and infra/automations.yaml say what the code can take."""

import re
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import pytest
import yaml
from prefect.exceptions import ObjectNotFound
from prefect.utilities.callables import parameter_schema

from fastvideo.v1.dataset.config import parse_config
from flows import automations
from flows.generate_dataset import generate_dataset, retry_failed
from flows.run_wave import run_wave

ROOT = Path(__file__).parents[2]
DEPLOYMENTS = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda deployment: deployment["name"])
def test_a_deployment_runs_a_flow_with_a_config_that_it_takes(deployment):
    module, _, name = deployment["entrypoint"].rpartition(".")
    flow = getattr(import_module(module), name)
    assert deployment["enforce_parameter_schema"] and "fastvideo" in deployment["tags"]
    assert deployment["concurrency_limit"]["collision_strategy"] == "ENQUEUE", "what is over the limit waits"
    if config := deployment.get("parameters", {}).get("config"):
        parsed = parse_config(config)
        flow.validate_parameters({"config": config})
        waves = {f"run-wave/{other['name']}" for other in DEPLOYMENTS if "wave" in other["tags"]}
        assert parsed.pools.wave is None or parsed.pools.wave in waves


@pytest.mark.parametrize("flow", [generate_dataset, retry_failed, run_wave], ids=lambda flow: flow.name)
def test_every_field_of_a_form_has_a_title_and_a_description(flow):
    form = parameter_schema(flow)
    fields = dict(form.properties)
    for name, section in form.definitions.items():
        fields |= {f"{name}.{key}": field for key, field in section.get("properties", {}).items()}
    for name, field in fields.items():
        shown = form.definitions[field["$ref"].rpartition("/")[2]] | field if "$ref" in field else field
        assert shown["title"][0].isupper() and shown["description"], name


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda deployment: deployment["name"])
def test_a_flow_run_in_a_container_starts_where_the_image_has_the_code(deployment):
    dockerfile = (ROOT / "infra" / "Dockerfile").read_text()
    image_folder = re.findall(r"^WORKDIR (\S+)$", dockerfile, re.MULTILINE)[-1]
    folders = [step["prefect.deployments.steps.set_working_directory"] for step in deployment.get("pull", [])]
    is_in_container = deployment["work_pool"]["name"] in {"fastvideo-docker", "fastvideo-kubernetes"}
    assert folders == ([{"directory": image_folder}] if is_in_container else [])


class FakeServer:
    def __init__(self, blocks):
        self.blocks, self.automations = blocks, []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def read_block_document_by_name(self, name, kind):
        if f"{kind}/{name}" not in self.blocks:
            raise ObjectNotFound(Exception("no such block"))
        return SimpleNamespace(id=self.blocks[f"{kind}/{name}"])

    def read_automations_by_name(self, name):
        return [automation for automation in self.automations if automation.name == name]

    def delete_automation(self, id):
        self.automations = [automation for automation in self.automations if automation.id != id]

    def create_automation(self, automation):
        self.automations.append(SimpleNamespace(**dict(automation), id=uuid4()))


def test_automations_are_set_once_however_often_they_are_applied(monkeypatch):
    server = FakeServer({})
    monkeypatch.setattr(automations, "get_client", lambda sync_client: server)
    lines = automations.apply_automations(ROOT / "infra" / "automations.yaml")
    assert [line.partition(":")[2] for line in lines[:2]] == [" set", " set"]
    assert "left out, for there is no block slack-webhook/fastvideo" in lines[2]
    server.blocks["slack-webhook/fastvideo"] = uuid4()
    automations.apply_automations(ROOT / "infra" / "automations.yaml")
    names = [automation.name for automation in server.automations]
    assert names == ["fastvideo-lost-host", "fastvideo-crashed-run", "fastvideo-over-error-budget"]
    assert server.automations[2].actions[0].block_document_id == server.blocks["slack-webhook/fastvideo"]
