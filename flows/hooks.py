"""What happens to a run's waves when the run itself is cancelled."""

from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterParentFlowRunId
from prefect.states import Cancelling


def cancel_waves(flow: Any, flow_run: Any, state: Any) -> None:
    """Cancels the waves that the run has started on pools; their workers end the jobs."""
    mine = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[flow_run.id]))
    with get_client(sync_client=True) as client:
        for wave in client.read_flow_runs(flow_run_filter=mine):
            if wave.deployment_id is not None and wave.state is not None and not wave.state.is_final():
                client.set_flow_run_state(wave.id, Cancelling(message="its run was cancelled"))
