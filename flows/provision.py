"""What a fresh store and a fresh Prefect server lack: the bucket, the process pool, its deployments.

``python -m flows.provision --storage s3://BUCKET`` makes them for the servers that the environment names.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import yaml

POOL = "fastvideo"
PREFECT_YAML = Path("prefect.yaml")


def provision(env: Mapping[str, str], storage: str) -> None:
    """Makes what is missing; what is there stays as it is. Outputs that lie in ~/fastvideo move to ``storage``.

    ``env`` has the settings of both servers; ``storage`` is the URI of a bucket. Raises ``ValueError`` with what
    Prefect says.
    """
    _make_bucket(env, storage.removeprefix("s3://"))
    with httpx.Client(base_url=f"{env['PREFECT_API_URL']}/", trust_env=False, timeout=60.0) as api:
        if POOL not in {pool["name"] for pool in _post(api, "work_pools/filter")}:
            _make_pool(api)
        names = {deployment["name"] for deployment in _post(api, "deployments/filter")}
        if new := [name for name in _declared() if name not in names]:
            _python(env, "prefect", "--no-prompt", "deploy", *(word for name in new for word in ("--name", name)))
            _python(env, "flows.automations")
        for deployment in _post(api, "deployments/filter"):
            if deployment["name"] in new:
                _move_output(api, deployment, storage)


def _make_bucket(env: Mapping[str, str], name: str) -> None:
    import s3fs

    s3 = s3fs.S3FileSystem(
        key=env["AWS_ACCESS_KEY_ID"],
        secret=env["AWS_SECRET_ACCESS_KEY"],
        endpoint_url=env["AWS_ENDPOINT_URL"],
        client_kwargs={"region_name": env["AWS_DEFAULT_REGION"]},
    )
    if not s3.exists(name):
        s3.mkdir(name)


def _make_pool(api: httpx.Client) -> None:
    """With its template: were it left to the workers, those that start together would lock SQLite for a minute."""
    kinds = api.get("collections/views/aggregate-worker-metadata")
    kinds.raise_for_status()
    template = kinds.json()["prefect"]["process"]["default_base_job_configuration"]
    pool = {"name": POOL, "type": "process", "base_job_template": template}
    api.post("work_pools/", json=pool).raise_for_status()


def _declared() -> list[str]:
    """The deployments on the pool that workers of this environment serve."""
    if not PREFECT_YAML.exists():
        raise ValueError(f"{PREFECT_YAML} is not in {Path.cwd()}; start from the repository's root")
    deployments = yaml.safe_load(PREFECT_YAML.read_text())["deployments"]
    return [deployment["name"] for deployment in deployments if deployment["work_pool"]["name"] == POOL]


def _move_output(api: httpx.Client, deployment: Mapping[str, Any], storage: str) -> None:
    config = deployment["parameters"].get("config", {})
    output = config.get("output", "")
    if output.startswith("~/fastvideo/"):
        config = {**config, "output": output.replace("~/fastvideo", storage)}
        answer = api.patch(
            f"deployments/{deployment['id']}", json={"parameters": {**deployment["parameters"], "config": config}}
        )
        answer.raise_for_status()


def _post(api: httpx.Client, path: str) -> list[dict[str, Any]]:
    answer = api.post(path, json={})
    answer.raise_for_status()
    found: list[dict[str, Any]] = answer.json()
    return found


def _python(env: Mapping[str, str], *arguments: str) -> None:
    command = [sys.executable, "-m", *arguments]
    ended = subprocess.run(command, env=env, text=True, capture_output=True, stdin=subprocess.DEVNULL, check=False)
    if ended.returncode:
        said = " ".join(f"{ended.stdout} {ended.stderr}".split())
        raise ValueError(f"`python -m {' '.join(arguments)}` failed: {said}")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="provision", description=__doc__)
    parser.add_argument("--storage", required=True, help="URI of the bucket")
    try:
        provision(os.environ, parser.parse_args().storage)
    except ValueError as error:
        sys.exit(f"provision: {error}")


if __name__ == "__main__":
    main()
