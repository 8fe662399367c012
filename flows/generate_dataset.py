"""From prompts to a video data set: plan, wave after wave, publish."""

from typing import Any

from prefect import flow

from fastvideo.v1.dataset.config import RunConfig
from flows.run_wave import run_wave
from tasks.events import report
from tasks.plan import cut_wave, plan, take_up_failed
from tasks.publish import publish

_MOST_WAVES = 10_000


class RunIncomplete(Exception):
    """The run ended with samples missing that another run may make; ``summary`` as the flow would have returned it."""

    def __init__(self, summary: dict[str, Any]) -> None:
        first = summary["failed_shards"][:1]
        why = f"; {first[0]['shard']}: {first[0]['cause']}: {first[0]['message']}" if first else ""
        missing = ", ".join(f"{phase} {counts['missing']}" for phase, counts in summary["phases"].items())
        super().__init__(f"missing: {missing}{why}")
        self.summary = summary


@flow(flow_run_name="{config.output}")
def generate_dataset(config: RunConfig) -> dict[str, Any]:
    """Makes every video that the prompts ask for and that is not there yet, and publishes the data set.

    Returns counts and places. Raises ``RunIncomplete`` when something is still missing that could be made.
    """
    return _complete(config, plan(config))


@flow(flow_run_name="{config.output}")
def retry_failed(config: RunConfig, run: str | None = None) -> dict[str, Any]:
    """Makes what a run lacks, its failed samples included. The prompts are the run's, ``config.prompts`` is unread."""
    return _complete(config, take_up_failed(config.output, run))


def _complete(config: RunConfig, start: dict[str, Any]) -> dict[str, Any]:
    """Wave after wave while something can be made and the last wave changed anything; then publishes."""
    report("planned", **start)
    run, status = start["run"], start
    failed_shards: list[dict[str, str]] = []
    for number in range(_MOST_WAVES):
        if (wave := cut_wave(config, run, number)) is None:
            break
        before, status = status, run_wave(config, run, wave)
        failed_shards = status["failed"]
        if status["phases"] == before["phases"]:
            break
    summary = {**start, "phases": status["phases"], "exit_code": status["exit_code"], "failed_shards": failed_shards}
    if summary["phases"]["decode"]["done"]:
        summary["published"] = publish(config.output, run)
    if summary["exit_code"] == 3:
        raise RunIncomplete(summary)
    return summary
