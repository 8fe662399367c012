"""The real thing on the embedded model: interrupted, and then finished by the same command."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


class Command:
    """``fastvideo dataset run`` as a child process."""

    def __init__(self, output: Path, prompts: str) -> None:
        self.output = output
        arguments = ["--prompts", prompts, "--output", str(output), "--sampling.num_inference_steps", "8", "--json"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(output.parent / "cache")}
        environment = {name: value for name, value in environment.items() if not name.startswith("PREFECT_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "flows.cli", "dataset", "run", *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A shell's background job ignores SIGINT, and so would what is started in it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def made(self, phase: str) -> dict[str, int]:
        """Finished objects of a phase and when they were written."""
        paths = (self.output / phase).glob("*/*/[!.]*")
        return {path.name: path.stat().st_mtime_ns for path in paths if ".step." not in path.name}

    def wait_for(self, phase: str, count: int) -> None:
        deadline = time.monotonic() + 120
        while len(self.made(phase)) < count:
            assert self.process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)

    def interrupt(self) -> tuple[int, str]:
        """Sends what Ctrl-C does; the exit code and standard error, once none of its processes is left."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        assert len(children) >= 3, "a Prefect server, torchrun, a rank"
        self.process.send_signal(signal.SIGINT)
        _, alive = psutil.wait_procs(children, timeout=15)
        assert not alive
        _, err = self.process.communicate(timeout=15)
        return self.process.returncode, err


def test_the_same_command_goes_on_where_it_was_stopped(tmp_path, write_prompts):
    output, prompts = tmp_path / "out", write_prompts(6)
    first = Command(output, prompts)
    first.wait_for("denoise", 2)
    code, err = first.interrupt()
    assert code == 130 and err.splitlines()[-1] == "fastvideo: interrupted; the same command goes on from here"

    before = first.made("encode") | first.made("denoise")
    second = Command(output, prompts)
    out, err = second.process.communicate(timeout=120)
    assert second.process.returncode == 0, err
    summary = json.loads(out)
    assert summary["phases"]["decode"]["done"] == summary["published"]["num_rows"] == 6
    assert summary["phases"]["denoise"]["unindexed"] == 0
    after = second.made("encode") | second.made("denoise")
    assert before.items() <= after.items(), "nothing that was committed was made again"
