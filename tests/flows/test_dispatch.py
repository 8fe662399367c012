"""Waves as flow runs of deployments: which are started, how often, and what a lost one costs."""

from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import httpx
import pytest
from prefect import State
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Crashed, Scheduled

from fastvideo.v1.dataset.config import PoolsConfig, RunConfig
from fastvideo.v1.dataset.plan.planning import plan_run
from fastvideo.v1.dataset.runs.run import open_run
from fastvideo.v1.dataset.waves.open_waves import open_waves
from fastvideo.v1.pipelines.phase import ALL_PHASES, Phase
from flows import dispatch, server_names
from flows.dispatch import Leg, legs
from flows.generate_dataset import RunIncomplete, generate_dataset, retry_failed
from flows.run_wave import run_wave

pytestmark = pytest.mark.xdist_group("prefect")  # one Prefect server for all flows


class FakeServer:
    """Stands for deployments and their workers: a flow run is run when it is asked after."""

    api_url = "http://server/api"
    deployments = ("run-wave/small", "run-wave/large", "run-wave/gpu", "run-wave/any")

    def __init__(self) -> None:
        self.runs: dict[str, SimpleNamespace] = {}
        self.started: list[str] = []
        self.outcomes: list[State | None] = []  # of the next flow runs; None: it runs to its end
        self.most_at_once = 0
        self.dies = False
        self.away = 0  # of the next requests so many are in vain

    def answer(self):
        if self.away:
            self.away -= 1
            response = httpx.Response(500, request=httpx.Request("POST", "http://server"))
            raise httpx.HTTPStatusError("its database is gone", request=response.request, response=response)

    def run_deployment(self, name, *, parameters, flow_run_name, tags, idempotency_key, timeout):
        self.answer()
        if idempotency_key not in self.runs:
            self.runs[idempotency_key] = SimpleNamespace(id=uuid4(), state=Scheduled(), parameters=parameters)
            self.started.append(name)
        return self.runs[idempotency_key]

    def read_deployment_by_name(self, name):
        if name not in self.deployments:
            raise ObjectNotFound(Exception("no such deployment"))

    def read_deployments(self, *, flow_filter):
        return [SimpleNamespace(name=name.removeprefix("run-wave/")) for name in self.deployments]

    def read_flow_runs(self, *, flow_run_filter):
        self.answer()
        if self.dies:
            raise KeyboardInterrupt
        asked = [run for run in self.runs.values() if run.id in flow_run_filter.id.any_]
        waiting = [run for run in asked if not run.state.is_final()]
        self.most_at_once = max(self.most_at_once, len(waiting))
        for run in waiting:
            outcome = self.outcomes.pop(0) if self.outcomes else None
            run.state = outcome or run_wave(**run.parameters, return_state=True)
        return asked


@pytest.fixture
def server(monkeypatch) -> FakeServer:
    fake = FakeServer()
    monkeypatch.setattr(dispatch, "run_deployment", fake.run_deployment)
    for module in (dispatch, server_names):
        monkeypatch.setattr(module, "get_client", lambda sync_client: fake)
    monkeypatch.setattr(dispatch, "_POLL_SECONDS", 0.0)
    return fake


@pytest.fixture
def config(tmp_path, write_prompts):
    def make(count=8, pools=None, **values):
        values = {"shard_size": 2, "wave_size": 2, **values}
        pools = PoolsConfig(**(pools or {"wave": "run-wave/gpu"}))
        return RunConfig(prompts=write_prompts(count), output=str(tmp_path / "out"), pools=pools, **values)

    return make


def test_a_phase_of_its_own_pool_is_a_flow_run_of_its_own():
    pools = PoolsConfig(wave="w/gpu", encode="w/small")
    assert legs(pools, ALL_PHASES) == [Leg("w/small", (Phase.ENCODE,)), Leg("w/gpu", (Phase.DENOISE, Phase.DECODE))]
    assert legs(pools, [Phase.DECODE]) == [Leg("w/gpu", (Phase.DECODE,))]
    assert legs(PoolsConfig(), ALL_PHASES) == []


def test_every_phase_needs_a_pool_or_none():
    with pytest.raises(ValueError, match=r"pools.decode has no deployment; set it, or pools.wave"):
        PoolsConfig(encode="w/a", denoise="w/b")


@pytest.mark.usefixtures("prefect_harness")
class TestRuns:
    def test_waves_at_once_share_no_sample(self, server, jobs, config):
        assert generate_dataset(config(10))["exit_code"] == 0
        assert server.most_at_once == 2 and server.started == ["run-wave/gpu"] * 3
        assert set(jobs.commits.values()) == {1} and len(jobs.commits) == 11 + 10 + 10

    @pytest.mark.parametrize("key", ["wave", *ALL_PHASES])
    def test_a_name_that_no_deployment_has_ends_the_run_before_it_is_planned(self, server, config, key):
        asked = config(4, {"wave": "run-wave/gpu", key: "run-wave/gpus"})
        rule = f"pools.{key}='run-wave/gpus' is no deployment on the Prefect server at http://server/api; there are: "
        for make in (generate_dataset, retry_failed):
            with pytest.raises(ValueError, match=rf"{rule}run-wave/any, run-wave/gpu, .*`prefect deploy`"):
                make(asked)
        assert not Path(asked.output).exists()

    def test_phases_follow_each_other_through_their_pools(self, server, jobs, config):
        pools = {"encode": "run-wave/small", "denoise": "run-wave/large", "decode": "run-wave/any"}
        assert generate_dataset(config(4, pools))["exit_code"] == 0
        assert server.started == ["run-wave/small", "run-wave/small", *["run-wave/large"] * 2, *["run-wave/any"] * 2]
        assert jobs.commits.keys() >= {f"{phase}/{id}" for phase in ("denoise", "decode") for id in ids(config(4))}

    def test_what_a_lost_wave_leaves_is_cut_again(self, server, jobs, config):
        server.outcomes = [Crashed(), None, Cancelled()]
        assert generate_dataset(config(10))["exit_code"] == 0
        assert set(jobs.commits.values()) == {1}
        assert len(server.started) == 6
        assert open_waves(open_run(config(10).output)) == []

    @pytest.mark.parametrize("patience, ends_well", [(60.0, True), (0.0, False)])
    def test_waves_go_on_while_the_server_is_away(self, server, jobs, config, monkeypatch, patience, ends_well):
        monkeypatch.setattr(dispatch, "_PATIENCE_SECONDS", patience)
        server.away = 3
        if not ends_well:
            with pytest.raises(httpx.HTTPStatusError):
                generate_dataset(config(4))
            return
        assert generate_dataset(config(4))["exit_code"] == 0
        assert len(server.started) == 2 and set(jobs.commits.values()) == {1}

    def test_no_wave_follows_three_that_were_lost(self, server, jobs, config):
        server.outcomes = [Crashed()] * 99
        with pytest.raises(RunIncomplete, match="decode 10"):
            generate_dataset(config(10))
        assert len(server.started) <= 4 and not jobs.launched

    def test_a_restarted_run_takes_up_the_waves_of_its_former_life(self, server, jobs, config):
        server.dies = True
        with pytest.raises(KeyboardInterrupt):
            generate_dataset(config(8))
        assert len(server.started) == 2 and not jobs.launched
        server.dies = False
        assert generate_dataset(config(8))["exit_code"] == 0
        assert len(server.started) == 2, "the flow runs of the former life did the work"
        assert set(jobs.commits.values()) == {1}

    def test_a_wave_that_is_closed_ends(self, server, jobs, config, monkeypatch):
        monkeypatch.setattr("tasks.wave_watch._LOOK_SECONDS", 0.0)
        server.dies = True
        with pytest.raises(KeyboardInterrupt):
            generate_dataset(config(8))
        server.dies = False
        run = open_run(config(8).output)
        first, second = open_waves(run)
        jobs.before_commit = lambda: [
            run.output.delete(info.path) for info in run.output.list(f"runs/{run.name}/waves")
        ]
        told = run_wave(config(8), run.name, first)
        assert told["end"] == "closed by whoever started it" and jobs.launched == ["encode-0000"]
        assert run_wave(config(8), run.name, second)["shards"] == 0

    def test_a_wave_over_its_error_budget_ends_the_run(self, server, jobs, config, monkeypatch):
        monkeypatch.setattr("tasks.wave_watch._LOOK_SECONDS", 0.0)
        jobs.bad_ids = _Everything()
        with pytest.raises(RunIncomplete, match="over the error budget of a wave"):
            generate_dataset(config(20, error_budget=0.5, text_shard_size=1))
        assert len(server.started) == 2, "no wave follows"
        assert jobs.launched and not any(name.startswith("denoise") for name in jobs.launched)

    def test_the_budget_of_a_wave_that_is_done_before_anybody_looks_ends_the_run(self, server, jobs, config):
        asked = config(20, error_budget=0.5)
        plan_run(asked)
        jobs.bad_ids = {*ids(asked)}  # their inputs are made, they are not
        with pytest.raises(RunIncomplete, match="over the error budget of a wave"):
            generate_dataset(asked)
        assert len(server.started) == 2, "those at work at once; no wave follows"


class _Everything(set):
    def __contains__(self, _: object) -> bool:
        return True


def ids(config):
    return [sample.id for sample in open_run(config.output).iter_samples()]
