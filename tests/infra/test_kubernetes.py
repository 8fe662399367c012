"""Kubernetes manifests, which no test can apply: held against Kubernetes' own API schema and Prefect's worker."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from flows.cli import EXIT_MISTAKE
from tests.infra.job_templates import filled, own_template

FOLDER = Path(__file__).parents[2] / "infra" / "kubernetes"
API_VERSION = kubernetes_validate.latest_version()
COMMAND = ["python", "-m", "fastvideo.v1.worker.agent", "0", "--engine", '{"model_path": "/models/a \\"b\\""}']
# Notes how it is called; the pods' exit codes are what the test says.
KUBECTL = """#!/bin/sh
echo "$@" >> "$CALLS"
case "$1 $2" in
  "patch --local") exec {python} {patch} "$@" ;;
  "create --filename") cat > "$CALLS.created" ;;
  "logs --follow") echo '[default0]:{{"event": "done"}}'; sleep "${{LOGS_SECONDS:-0}}" ;;
  "get pods") printf '%b' "$EXIT_CODES" ;;
esac
"""

# `patch --local --filename FILE --type json --patch STEPS --output yaml`
PATCH = """
import json, sys, yaml
options = dict(zip(sys.argv[3::2], sys.argv[4::2]))
manifest = yaml.safe_load(open(options["--filename"]))
for step in json.loads(options["--patch"]):
    *parents, last = step["path"].split("/")[1:]
    place = manifest
    for name in parents:
        place = place[int(name) if isinstance(place, list) else name]
    assert options["--type"] == "json" and step["op"] == ("replace" if last in place else "add")
    place[last] = step["value"]
print(yaml.safe_dump(manifest))
"""


def check(manifest: dict[str, Any]) -> None:
    kubernetes_validate.validate(manifest, API_VERSION, strict=True)


def documents() -> list[Any]:
    paths = sorted(FOLDER.glob("*.yaml"))
    loaded = [(path.name, document) for path in paths for document in yaml.safe_load_all(path.read_text())]
    return [pytest.param(document, id=f"{name}-{document['kind']}") for name, document in loaded]


@pytest.mark.parametrize("manifest", documents())
def test_manifest_is_valid(manifest: dict[str, Any]) -> None:
    check(manifest)


def test_a_typo_would_not_pass() -> None:
    manifest = yaml.safe_load((FOLDER / "nodes.yaml").read_text())
    manifest["spec"]["template"]["spec"]["terminationGracePeriod"] = 120
    with pytest.raises(kubernetes_validate.ValidationError, match="terminationGracePeriod"):
        check(manifest)


@pytest.fixture(scope="module")
def template() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((FOLDER / "base-job-template.json").read_text())
    return loaded


def test_template_keeps_what_prefects_worker_reads(template: dict[str, Any]) -> None:
    prefects_own = own_template("prefect-kubernetes", "kubernetes")
    own = prefects_own["variables"]["properties"]
    kept = template["variables"]["properties"]
    assert {name: said["type"] for name, said in own.items() if "type" in said} == {
        name: kept[name]["type"] for name, said in own.items() if "type" in said
    }
    assert template["job_configuration"].keys() == prefects_own["job_configuration"].keys()


def test_every_variable_is_used_and_described(template: dict[str, Any]) -> None:
    text = json.dumps(template["job_configuration"])
    for name, said in template["variables"]["properties"].items():
        assert f"{{{{ {name} }}}}" in text, f"nobody reads {name}"
        assert said["title"] and said["description"]


def test_deployments_set_what_the_template_has(template: dict[str, Any]) -> None:
    declared = yaml.safe_load((FOLDER.parents[1] / "prefect.yaml").read_text())["deployments"]
    pools = [one["work_pool"] for one in declared if one["work_pool"]["name"] == "fastvideo-kubernetes"]
    assert pools
    for pool in pools:
        assert set(pool.get("job_variables", {})) <= set(template["variables"]["properties"])
    *_, worker = yaml.safe_load_all((FOLDER / "worker.yaml").read_text())
    assert "fastvideo-kubernetes" in worker["spec"]["template"]["spec"]["containers"][0]["args"]


def test_template_makes_a_valid_job_with_gpus(template: dict[str, Any]) -> None:
    manifest = filled(
        template,
        name="wave",
        command=["prefect", "flow-run", "execute"],
        labels={"app": "fastvideo"},
        env=[{"name": "PREFECT_API_URL", "value": "http://prefect-server:4200/api"}],
        gpus=4,
    )["job_manifest"]
    check(manifest)
    pod = manifest["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 4
    assert pod["terminationGracePeriodSeconds"] == 120
    assert {toleration["key"] for toleration in pod["tolerations"]} > {"nvidia.com/gpu", "cloud.google.com/gke-spot"}


def test_pods_of_flows_say_that_they_live() -> None:
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
    from prefect.workers.base import BaseJobConfiguration

    *_, worker = yaml.safe_load_all((FOLDER / "worker.yaml").read_text())
    given = {one["name"]: one.get("value") for one in worker["spec"]["template"]["spec"]["containers"][0]["env"]}
    name = PREFECT_FLOWS_HEARTBEAT_FREQUENCY.name
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: given[name]}):
        assert BaseJobConfiguration._base_environment()[name] == given[name] == "30"


def test_the_worker_watches_no_namespace_that_its_role_does_not_reach() -> None:
    *_, worker = yaml.safe_load_all((FOLDER / "worker.yaml").read_text())
    given = {one["name"]: one for one in worker["spec"]["template"]["spec"]["containers"][0]["env"]}
    watched = given["PREFECT_INTEGRATIONS_KUBERNETES_OBSERVER_NAMESPACES"]
    assert watched["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.namespace"}}


def test_an_outage_ends_no_job_for_good() -> None:
    *_, job = yaml.safe_load_all((FOLDER / "dataset-job.yaml").read_text())
    fatal = [
        rule["onExitCodes"]["values"] for rule in job["spec"]["podFailurePolicy"]["rules"] if "onExitCodes" in rule
    ]
    assert fatal == [[EXIT_MISTAKE, 2]]


def test_secrets_are_referred_to_and_nowhere_written(template: dict[str, Any]) -> None:
    pods = [filled(template)["job_manifest"]["spec"]["template"]["spec"]]
    for name in ("nodes.yaml", "dataset-job.yaml"):
        *_, job = yaml.safe_load_all((FOLDER / name).read_text())
        pods.append(job["spec"]["template"]["spec"])
    for pod in pods:
        assert pod["containers"][0]["envFrom"] == [{"secretRef": {"name": "fastvideo-store"}}]
        assert not [one for one in pod["containers"][0].get("env", []) if one["name"].startswith("AWS_")]


@pytest.fixture
def launcher_env(tmp_path: Path) -> dict[str, str]:
    """An environment in which ``kubectl`` is ours: no cluster is asked."""
    (tmp_path / "patch.py").write_text(PATCH)
    (tmp_path / "kubectl").write_text(KUBECTL.format(python=sys.executable, patch=tmp_path / "patch.py"))
    (tmp_path / "kubectl").chmod(0o755)
    return {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "CALLS": str(tmp_path / "calls")}


@pytest.mark.parametrize("codes, expected", [("0\\n0\\n", 0), ("0\\n75\\n", 75)])
def test_launcher_creates_a_pod_a_node_and_ends_as_they_do(
    launcher_env: dict[str, str], codes: str, expected: int
) -> None:
    env = {**launcher_env, "FASTVIDEO_NNODES": "3", "EXIT_CODES": codes}
    ended = subprocess.run([FOLDER / "on-nodes.sh", *COMMAND], env=env, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (expected, '[default0]:{"event": "done"}\n'), ended.stderr
    created = yaml.safe_load(Path(env["CALLS"] + ".created").read_text())
    check(created)
    assert (created["spec"]["completions"], created["spec"]["parallelism"]) == (3, 3)
    assert created["spec"]["template"]["spec"]["containers"][0]["args"] == COMMAND
    calls = Path(env["CALLS"]).read_text().splitlines()
    assert calls[0].startswith("delete job fastvideo-nodes") and calls[-1].startswith("delete job fastvideo-nodes")


def test_launcher_that_is_asked_to_end_ends_the_pods(launcher_env: dict[str, str]) -> None:
    env = {**launcher_env, "FASTVIDEO_NNODES": "2", "EXIT_CODES": "", "LOGS_SECONDS": "3"}
    with subprocess.Popen([FOLDER / "on-nodes.sh", *COMMAND], env=env, stdout=subprocess.PIPE) as launcher:
        assert launcher.stdout is not None and launcher.stdout.readline()
        launcher.terminate()
        assert launcher.wait(10) == 143
    assert Path(env["CALLS"]).read_text().splitlines()[-1].startswith("delete job fastvideo-nodes")
