"""The Docker pool's base job template: held against Prefect's worker and against what Docker's client takes."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.infra.job_templates import filled, own_template

INFRA = Path(__file__).parents[2] / "infra"


@pytest.fixture(scope="module")
def template() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((INFRA / "docker" / "base-job-template.json").read_text())
    return loaded


def container(job: dict[str, Any]) -> dict[str, Any]:
    """The container that Prefect's worker asks Docker for; raises for what Docker's client does not know."""
    from docker.models.containers import _create_container_args

    named = {name: job[name] for name in ("image", "volumes", "command")}
    made: dict[str, Any] = _create_container_args({**named, **job["container_create_kwargs"], "version": "1.47"})
    return made


def test_template_keeps_what_prefects_worker_reads(template: dict[str, Any]) -> None:
    own = own_template("prefect-docker", "docker")
    assert {name: said.get("type") for name, said in own["variables"]["properties"].items()} == {
        name: template["variables"]["properties"][name].get("type") for name in own["variables"]["properties"]
    }
    assert template["job_configuration"].keys() == own["job_configuration"].keys() | {"container_create_kwargs"}


def test_a_flow_run_has_gpus_models_keys_and_shared_locks(template: dict[str, Any]) -> None:
    made = container(filled(template, command="prefect flow-run execute"))
    host = made["host_config"]
    assert host["DeviceRequests"][0]["Count"] == -1 and host["DeviceRequests"][0]["Capabilities"] == [["gpu"]]
    assert host["ShmSize"] == 16 * 2**30
    assert made["volumes"] == ["/models", "/home/fastvideo", "/home/fastvideo/.aws", "/tmp/fastvideo-devices"]
    assert [bind for bind in host["Binds"] if bind.startswith("/")] == [
        "/models:/models:ro", "/etc/fastvideo/aws:/home/fastvideo/.aws:ro",
    ]  # fmt: skip


def test_a_typo_would_not_pass(template: dict[str, Any]) -> None:
    job = filled(template, command="x")
    job["container_create_kwargs"]["device_request"] = []
    with pytest.raises(TypeError, match="device_request"):
        container(job)


def test_the_pools_image_is_the_one_that_is_built(template: dict[str, Any]) -> None:
    image = template["variables"]["properties"]["image"]["default"]
    assert f"-t {image} ." in (INFRA / "Dockerfile").read_text()
    compose = yaml.safe_load((INFRA / "compose.yaml").read_text())
    assert compose["x-fastvideo"]["image"] == image.replace("local", "${FASTVIDEO_VERSION:-local}")


def test_deployments_set_what_the_template_has(template: dict[str, Any]) -> None:
    declared = yaml.safe_load((INFRA.parent / "prefect.yaml").read_text())["deployments"]
    pools = [one["work_pool"] for one in declared if one["work_pool"]["name"] == "fastvideo-docker"]
    assert pools
    for pool in pools:
        assert set(pool.get("job_variables", {})) <= set(template["variables"]["properties"])
