"""What torchrun is made to do, in this process; what it does with a whole job is in test_torchrun.py."""

import os
from pathlib import Path
from threading import Event

import pytest
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, start_processes
from torch.distributed.elastic.multiprocessing.api import PContext
from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

from fastvideo.v1.worker import agent
from fastvideo.v1.worker.device_lock import hold_devices
from fastvideo.v1.worker.failures import EXIT_PREEMPTED, JobFailed


def test_on_another_node_than_the_launchers_the_folder_is_its_own_and_goes(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    with agent._on_this_host(str(tmp_path)) as folder:
        assert folder == str(tmp_path)
    with agent._on_this_host(str(tmp_path / "missing")) as folder:
        assert Path(os.environ["TORCHELASTIC_ERROR_FILE"]).parent == Path(folder)
    assert tmp_path.is_dir() and not Path(folder).exists()


RANK = """#!/bin/sh
cd $1
trap 'sleep 1; touch saved; exit 0' TERM
touch $RANK
while [ ! -e 1 -o $RANK = 1 ]; do sleep 0.05; done
exit $2
"""


def test_once_a_rank_has_left_the_others_have_the_whole_grace_and_hold_their_devices(tmp_path, monkeypatch):
    monkeypatch.setattr(PContext.close, "__defaults__", (None, 0.1))
    monkeypatch.setattr(PContext, "close", PContext.close)
    monkeypatch.setattr(subprocess_handler, "Popen", subprocess_handler.Popen)
    (script := tmp_path / "rank").write_text(RANK)
    script.chmod(0o755)
    arguments, ranks = (str(tmp_path), EXIT_PREEMPTED), (0, 1)
    with hold_devices(("a",), 1, folder=tmp_path) as held:
        agent._set_what_torchrun_has_no_option_for(20.0, held.files)
        job = start_processes(
            "job",
            str(script),
            {rank: arguments for rank in ranks},
            {rank: {"RANK": str(rank)} for rank in ranks},
            DefaultLogsSpecs(),
        )
    (stop := Event()).set()
    with pytest.raises(JobFailed, match="while waiting"), hold_devices(("a",), 1, stop, folder=tmp_path):
        pass  # what started the ranks holds it no more
    result = job.wait(20)
    assert result is not None and result.failures[0].exitcode == EXIT_PREEMPTED
    assert (tmp_path / "saved").exists() and list(result.failures) == [0]
    with hold_devices(("a",), 1, stop, folder=tmp_path):
        pass
