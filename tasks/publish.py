"""Publishing what a run has made, for readers and for Prefect's UI."""

from dataclasses import asdict
from typing import Any

from fastvideo.v1.dataset.publishing.publish import publish as publish_run
from fastvideo.v1.dataset.runs.run import open_run
from tasks.artifacts import link_data_set, show_contact_sheet
from tasks.retries import storage_task


@storage_task()
def publish(output: str, run: str) -> dict[str, Any]:
    """Writes the tables, the card and the contact sheet; links them in the UI; returns where they are."""
    opened = open_run(output, run)
    report = publish_run(opened)
    link_data_set(opened, report)
    if report.contact_sheet is not None:
        show_contact_sheet(opened)
    return {**asdict(report), "data_files": len(report.data_files), "output": opened.output.uri("")}
