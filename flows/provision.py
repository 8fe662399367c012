"""What a fresh store and a fresh Prefect server lack: the bucket, the process pool, its deployments.

``python -m flows.provision --storage s3://BUCKET --pool POOL`` makes them on the servers that the environment names.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import httpx
import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentUpdate, WorkPoolCreate
from prefect.client.schemas.responses import DeploymentResponse

from flows.automations import DEFAULT_FILE, apply_automations

PREFECT_YAML = Path("prefect.yaml")


def provision(storage: str, pool: str) -> None:
    """Makes what is missing; what is there stays as it is, but for declared outputs in ~/fastvideo: those move.

    ``storage`` is the URI of a bucket; of the declared deployments, those on ``pool`` are made. Raises
    ``ValueError`` with what ``prefect deploy`` says, ``httpx.HTTPError`` where the server does not answer.
    """
    _make_bucket(storage.removeprefix("s3://"))
    with get_client(sync_client=True) as client:
        if pool not in {there.name for there in client.read_work_pools()}:
            _make_pool(client, pool)
        declared, names = _declared(pool), {deployment.name for deployment in client.read_deployments()}
        if new := [name for name in declared if name not in names]:
            apply_automations(DEFAULT_FILE)  # first: once they are there, the deployments alone say what is missing
            _deploy(new)
        for deployment in client.read_deployments():
            if deployment.name in declared:
                _move_output(client, deployment, storage)


def _make_bucket(name: str) -> None:
    import s3fs

    s3 = s3fs.S3FileSystem(
        key=os.environ["AWS_ACCESS_KEY_ID"],
        secret=os.environ["AWS_SECRET_ACCESS_KEY"],
        endpoint_url=os.environ["AWS_ENDPOINT_URL"],
        client_kwargs={"region_name": os.environ["AWS_DEFAULT_REGION"]},
    )
    if not s3.exists(name):
        s3.mkdir(name)


def _make_pool(client: SyncPrefectClient, name: str) -> None:
    """With its template: were it left to the workers, those that start together would lock SQLite for a minute."""
    template = client.read_worker_metadata()["prefect"]["process"]["default_base_job_configuration"]
    client.create_work_pool(WorkPoolCreate(name=name, type="process", base_job_template=template))


def _declared(pool: str) -> list[str]:
    if not PREFECT_YAML.exists():
        raise ValueError(f"{PREFECT_YAML} is not in {Path.cwd()}; start from the repository's root")
    deployments = yaml.safe_load(PREFECT_YAML.read_text())["deployments"]
    return [deployment["name"] for deployment in deployments if deployment["work_pool"]["name"] == pool]


def _deploy(names: list[str]) -> None:
    command = ["prefect", "--no-prompt", "deploy", *(word for name in names for word in ("--name", name))]
    ended = subprocess.run(
        [sys.executable, "-m", *command], text=True, capture_output=True, stdin=subprocess.DEVNULL, check=False
    )
    if ended.returncode:
        said = " ".join(f"{ended.stdout} {ended.stderr}".split())
        raise ValueError(f"`{' '.join(command)}` failed: {said}")


def _move_output(client: SyncPrefectClient, deployment: DeploymentResponse, storage: str) -> None:
    config = deployment.parameters.get("config", {})
    output = config.get("output", "")
    if output.startswith("~/fastvideo/"):
        config = {**config, "output": output.replace("~/fastvideo", storage)}
        update = DeploymentUpdate(parameters={**deployment.parameters, "config": config})
        client.update_deployment(deployment.id, update)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="provision", description=__doc__)
    parser.add_argument("--storage", required=True, help="URI of the bucket")
    parser.add_argument("--pool", required=True, help="name of the process pool")
    try:
        provision(**vars(parser.parse_args()))
    except (ValueError, httpx.HTTPError) as error:
        sys.exit(f"provision: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()
