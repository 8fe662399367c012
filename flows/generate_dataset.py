"""From prompts to a video data set: plan, wave after wave, publish."""

import uuid
from collections import deque
from dataclasses import replace
from typing import Annotated, Any

from prefect import flow
from prefect.flow_runs import suspend_flow_run
from prefect.runtime import deployment, flow_run

from fastvideo.v1.dataset.config import RunConfig
from flows.course import Course
from flows.dispatch import Waves, WavesHere, WavesOnPools
from flows.hooks import cancel_waves
from flows.parameters import DataSet, parameter
from flows.server_names import check_names
from tasks.events import listening, report
from tasks.plan import close_wave, cut_waves, drop_waves, plan, take_stock, take_up_failed
from tasks.publish import publish
from tasks.run_view import RunView, tell_over_budget

_MOST_WAVES = 10_000
_MOST_STARTS = 20  # of one flow run, by whoever starts it again after a crash


class RunIncomplete(Exception):
    """The run ended with samples missing that another run may make; ``summary`` as the flow would have returned it."""

    def __init__(self, summary: dict[str, Any]) -> None:
        first = summary["failed_shards"][:1]
        why = f"; {first[0]['shard']}: {first[0]['cause']}: {first[0]['message']}" if first else ""
        missing = ", ".join(f"{phase} {counts['missing']}" for phase, counts in summary["phases"].items())
        budget = "over the error budget of a wave; " if summary["over_budget"] else ""
        super().__init__(f"{budget}missing: {missing}{why}")
        self.summary = summary


@flow(flow_run_name="{config.output}", on_cancellation=[cancel_waves])
def generate_dataset(config: DataSet) -> dict[str, Any]:
    """Makes every video that the prompts ask for and that is not there yet, and publishes the data set.

    Returns counts and places. Raises ``RunIncomplete`` when something is still missing that could be made.
    """
    check_names(config)
    return _complete(config, plan(config))


@flow(flow_run_name="{config.output}", on_cancellation=[cancel_waves])
def retry_failed(
    config: DataSet, run: Annotated[str | None, parameter("Run", "Its name; the newest by default")] = None
) -> dict[str, Any]:
    """Makes what a run lacks, its failed samples included. The prompts are the run's, ``config.prompts`` is unread.

    So is its model, unless ``config`` says where that lies now.
    """
    check_names(config)
    return _complete(config, take_up_failed(config, run))


def _complete(config: RunConfig, start: dict[str, Any]) -> dict[str, Any]:
    """Wave after wave while something can be made and waves change anything; then publishes."""
    if (flow_run.run_count or 0) > _MOST_STARTS:
        raise RuntimeError(f"this run has been started {_MOST_STARTS} times and never came to its end; see their logs")
    config = replace(config, engine=replace(config.engine, model_path=start["model_path"]))
    report("planned", **start)
    waves = WavesOnPools(config, start["run"]) if config.pools.are_used else WavesHere(config, start["run"])
    view = RunView(config, start, waves.working)
    view.show()
    course = Course(start)
    with listening(view.take):
        _run_waves(config, start["run"], waves, view, course)
    summary = {**start, **course.summary()}
    if summary["exit_code"] != 3:
        drop_waves(config.output, start["run"])  # those that lives which were killed have left
    if summary["phases"]["decode"]["done"]:
        summary["published"] = publish(config.output, start["run"])
    if summary["over_budget"]:
        _pause(config, summary)
    if summary["exit_code"] == 3:
        raise RunIncomplete(summary)
    return summary


def _run_waves(config: RunConfig, run: str, waves: Waves, view: RunView, course: Course) -> None:
    """Runs waves while there are any and they change anything.

    One scan cuts as many as were cut before it. So a run of n waves scans its stores log n times, which together costs
    little more than the last scan, and the sizes of shards still follow what was measured.
    """
    ready, number, may_cut = deque(waves.left_open()), 0, True
    while True:
        while course.goes_on and len(waves.working) < config.pools.num_waves:
            if not ready and may_cut and number < _MOST_WAVES:
                cut = cut_waves(config, run, number, max(config.pools.num_waves, number), [*waves.working])
                ready.extend(cut["waves"])
                number, may_cut = number + len(ready), bool(ready)
                course.count(cut)
                view.count(cut)
            if not ready:
                break
            waves.start(ready.popleft())
        if not waves.working:
            break
        for ended in waves.wait():
            closed = close_wave(config.output, run, ended.wave)
            course.take(closed, ended.lost)
            view.close_wave(ended.wave, ended.lost, ended.flow_run_id, closed)
            may_cut = True
        report("tick")
    if ready:
        drop_waves(config.output, run, [*ready])
    if not course.is_counted:
        course.count(take_stock(config.output, run))


def _pause(config: RunConfig, summary: dict[str, Any]) -> None:
    """Tells of it, and waits for a person where Prefect can start the run again: resumed, it begins anew."""
    waits = bool(deployment.id) and summary["exit_code"] == 3
    tell_over_budget(config, summary["run"], waits)
    if waits:
        suspend_flow_run(key=uuid.uuid4().hex)
