"""What a config names of the Prefect server: the deployments of its pools, and the limit that counts GPUs."""

from collections.abc import Callable
from typing import Any

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.exceptions import ObjectNotFound

from fastvideo.v1.dataset.config import RunConfig
from fastvideo.v1.pipelines.phase import ALL_PHASES
from fastvideo.v1.shown_text import without_secrets
from flows.run_wave import run_wave


def check_names(config: RunConfig) -> None:
    """Raises ``ValueError`` for one that the server does not have, at which every wave would fail."""
    client = get_client(sync_client=True)  # the flow's own
    server = f"the Prefect server at {without_secrets(str(client.api_url))}"
    for key in ("wave", *ALL_PHASES):
        name = getattr(config.pools, key)
        if name is not None and not (name.count("/") == 1 and _has(client.read_deployment_by_name, name)):
            raise ValueError(
                f"pools.{key}={name!r} is no deployment on {server}; {_deployments(client)}; mend the name or "
                "PREFECT_API_URL, or make it with `prefect deploy`"
            )
    limit = config.gpu_limit
    if limit is not None and not _has(client.read_global_concurrency_limit_by_name, limit):
        raise ValueError(
            f"gpu_limit={limit!r} is no global concurrency limit on {server}; mend the name or PREFECT_API_URL, or "
            f"make it with `prefect gcl create {limit} --limit NUMBER_OF_GPUS`"
        )


def _has(read: Callable[[str], Any], name: str) -> bool:
    try:
        read(name)
    except ObjectNotFound:
        return False
    return True


def _deployments(client: SyncPrefectClient) -> str:
    """Those that waves can run on."""
    found = client.read_deployments(flow_filter=FlowFilter(name=FlowFilterName(any_=[run_wave.name])))
    names = sorted(f"{run_wave.name}/{deployment.name}" for deployment in found)
    return f"there are: {', '.join(names)}" if names else f"it has none of {run_wave.name}"
