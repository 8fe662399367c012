"""The state of a run, from storage alone."""

import shutil
from pathlib import Path

from fastvideo.v1.dataset.plan.planning import plan_run
from fastvideo.v1.dataset.progress.status import run_status
from fastvideo.v1.pipelines.phase import Phase
from tests.fastvideo.v1.dataset.run_contents import ids, prompts


def test_an_output_can_be_moved(make_config, make_object, tmp_path: Path) -> None:
    config = make_config(*prompts(2))
    run = plan_run(config).run
    make_object(run, Phase.DECODE, ids(run)[0])
    shutil.move(config.output, tmp_path / "moved")
    assert run_status(str(tmp_path / "moved")).phases[Phase.DECODE].done == 1
