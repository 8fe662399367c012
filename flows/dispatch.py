"""Where the waves of a run are worked on: in this process, or as flow runs of deployments on work pools.

The folder of a wave in storage says that it is open; Prefect says only who works on it. A wave is started under an
idempotency key made of its name, so that a restarted flow, which starts every open wave again, is handed the flow runs
of its former life. A flow run that crashed, failed or was cancelled gives its wave up: its folder is removed, at which
whatever still works on it stops, and what is missing is cut again.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol
from uuid import UUID

import httpx
from prefect import State, get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.deployments import run_deployment

from fastvideo.v1.dataset.config import PoolsConfig, RunConfig, config_values
from fastvideo.v1.pipelines.phase import ALL_PHASES, Phase
from flows.local_server import is_away
from flows.run_wave import OverBudget, run_wave
from tasks.plan import find_open_waves, open_wave

_POLL_SECONDS = 5.0
_PATIENCE_SECONDS = 600.0  # without an answer of the Prefect server: waves need it less than we do


@dataclass(frozen=True)
class Ended:
    """A wave that nobody works on any more; ``lost`` says what became of its flow run, where that did not end well."""

    wave: str
    lost: str | None = None
    flow_run_id: UUID | None = None


class Waves(Protocol):
    """The waves at work, by name."""

    working: dict[str, UUID | None]

    def left_open(self) -> list[str]:
        """The waves of a former life that are to be started again, oldest first."""

    def start(self, wave: str) -> None:
        """Has a wave worked on."""

    def wait(self) -> Sequence[Ended]:
        """Those that ended, after a while perhaps none."""


class WavesHere:
    """One wave after another, in this process.

    Those of a former life are given up: the kernel ended their jobs with it.
    """

    def __init__(self, config: RunConfig, run: str) -> None:
        self.working: dict[str, UUID | None] = {}
        self._config, self._run = config, run

    def left_open(self) -> list[str]:
        """None: another process may be at work on what lies there."""
        return []

    def start(self, wave: str) -> None:
        """Runs a wave to its end."""
        self.working[wave] = None
        try:
            run_wave(self._config, self._run, wave)
        except OverBudget as error:
            get_run_logger().error("%s", error)

    def wait(self) -> Sequence[Ended]:
        """The one that was started."""
        ended = [Ended(wave) for wave in self.working]
        self.working.clear()
        return ended


@dataclass(frozen=True)
class Leg:
    """Phases in a row that one deployment runs."""

    deployment: str
    phases: tuple[Phase, ...]


def legs(pools: PoolsConfig, phases: Sequence[Phase]) -> list[Leg]:
    """The flow runs, one after another, that a wave with shards of ``phases`` takes."""
    ordered = [phase for phase in ALL_PHASES if phase in phases]
    grouped = groupby(ordered, key=pools.deployment)
    return [Leg(deployment, tuple(those)) for deployment, those in grouped if deployment is not None]


class WavesOnPools:
    """Several waves at once, each a flow run after another."""

    def __init__(self, config: RunConfig, run: str) -> None:
        self.working: dict[str, UUID | None] = {}
        self._config, self._run = config, run
        self._legs: dict[str, list[Leg]] = {}
        self._away_since: float | None = None

    def left_open(self) -> list[str]:
        """All that are open: to start one again, under its own key, finds the flow run that there is."""
        return find_open_waves(self._config.output, self._run)

    def start(self, wave: str) -> None:
        """Starts the first flow run of a wave."""
        shards = open_wave(self._config.output, self._run, wave)
        self._legs[wave] = legs(self._config.pools, [shard.phase for shard in shards])
        if self._legs[wave]:  # else another closed it
            self._start_leg(wave)

    def _start_leg(self, wave: str) -> None:
        """Starts the next flow run of a wave, or leaves that to a time at which the server answers."""
        self.working[wave] = None
        leg = self._legs[wave][0]
        phases = "+".join(leg.phases)
        parameters = {"config": config_values(self._config), "run": self._run, "wave": wave, "phases": [*leg.phases]}
        with self._patience():
            flow_run = run_deployment(
                leg.deployment,
                parameters=parameters,
                flow_run_name=f"wave {wave} {phases}",
                tags=[self._run],
                idempotency_key=f"{self._run}/{wave}/{phases}",
                timeout=0,
            )
            self.working[wave] = flow_run.id  # type: ignore[union-attr]
            del self._legs[wave][0]

    def wait(self) -> Sequence[Ended]:
        """Asks after a while; a wave whose flow run ended well goes on with its next."""
        time.sleep(_POLL_SECONDS)
        for wave in [wave for wave, id in self.working.items() if id is None]:
            self._start_leg(wave)
        ended = []
        for wave, state in self._states().items():
            if state is not None and not state.is_final():
                continue
            if state is not None and state.is_completed() and self._legs[wave]:
                self._start_leg(wave)
                continue
            is_well = state is not None and state.is_completed()
            lost = None if is_well else state.name if state else "deleted"
            ended.append(Ended(wave, lost, self.working.pop(wave)))
            del self._legs[wave]
        return ended

    def _states(self) -> dict[str, State[Any] | None]:
        """What the server says of each wave's flow run, None if it has none; empty while it can't be asked."""
        ids = [id for id in self.working.values() if id is not None]
        if not ids:
            return {}
        with self._patience():
            client = get_client(sync_client=True)  # the flow's own
            runs = client.read_flow_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=ids)))
            states = {run.id: run.state for run in runs}
            return {wave: states.get(id) for wave, id in self.working.items() if id is not None}
        return {}

    @contextmanager
    def _patience(self) -> Iterator[None]:
        """Passes over the errors of a server that is away, or without its database, for ten minutes."""
        try:
            yield
        except httpx.HTTPError as error:
            self._away_since = self._away_since or time.monotonic()
            if not is_away(error) or time.monotonic() - self._away_since > _PATIENCE_SECONDS:
                raise
            get_run_logger().warning("the Prefect server does not answer (%s); asked again", error)
        else:
            self._away_since = None
