"""verify, gc, copy and reproduce as a person runs them: what they print, and the exit codes that a script can use."""

import json
from pathlib import Path

import pytest

from fastvideo.v1.dataset.objects.comparison import Comparison
from fastvideo.v1.dataset.publishing.publish import publish
from fastvideo.v1.dataset.runs.run import Run
from fastvideo.v1.pipelines.phase import Phase
from fastvideo.v1.worker.reproduce import NOT_STORED, Reproduction
from flows.cli import run


@pytest.fixture
def made(make_config, make_whole) -> Run:
    whole = make_whole(make_config('{"prompt": "a"}', '{"prompt": "b"}'))
    publish(whole)
    return whole


def test_verify_tells_by_exit_code(made: Run, capsys) -> None:
    output = made.output.uri("")
    assert run(["dataset", "verify", "--output", output]) == 0
    assert "7 objects read" in capsys.readouterr().out
    victim = next(Path(output).glob("denoise/*/*/*.safetensors"))
    victim.write_bytes(victim.read_bytes()[:-1] + b"x")
    assert run(["dataset", "verify", "--output", output]) == 4
    out = capsys.readouterr().out
    assert "1 damaged" in out and f"{victim.relative_to(output)}: its content does not match its digest" in out
    assert run(["dataset", "verify", "--output", output, "--all-runs", "--repair", "--json"]) == 3
    found = json.loads(capsys.readouterr().out)
    assert (found["counts"], found["num_put_aside"], found["exit_code"]) == ({"damaged": 1}, 1, 3)
    assert run(["dataset", "verify", "--output", output]) == 3
    assert "1 broken" in capsys.readouterr().out


def test_verify_reads_what_is_published_of_runs_that_are_gone(made: Run, capsys) -> None:
    output = made.output.uri("")
    drop = ["dataset", "gc", "--output", output, "--drop-run", made.name, "--older-than", "0", "--yes"]
    line = ["dataset", "verify", "--output", output]
    assert run(drop) == 0 and run(line) == run([*line, "--all-runs"]) == 0
    assert "6 objects read" in (out := capsys.readouterr().out) and "no run is left" in out
    next(Path(output).glob("decode/*/*/*.mp4")).write_bytes(b"")
    next(Path(output).glob("denoise/*/*/*.safetensors")).unlink()
    assert run(line) == 4 and "1 damaged" in (out := capsys.readouterr().out) and "1 broken" in out
    assert run([*line, "--run", made.name]) == 1 and "there are: none" in capsys.readouterr().err
    made.output.delete_many(info.path for info in made.output.list("data"))
    assert run(line) == 1 and "holds no run yet" in capsys.readouterr().err


def test_gc_says_what_it_would_do_and_does_it_when_told(made: Run, capsys) -> None:
    output = made.output.uri("")
    made.output.create("decode/0123456789abcdef/00/00.mp4", b"12345")
    line = ["dataset", "gc", "--output", output, "--older-than", "0"]
    assert run(line) == 0
    out = capsys.readouterr().out
    assert "objects that no run needs" in out and "1 files, 5 B to be deleted with --yes" in out
    assert run([*line, "--yes"]) == 0
    assert "1 files, 5 B deleted" in capsys.readouterr().out
    assert run(line) == 0 and "0 files" in capsys.readouterr().out


def test_copy_ends_whole_or_says_what_is_in_the_way(made: Run, capsys, tmp_path: Path) -> None:
    output, target = made.output.uri(""), str(tmp_path / "target")
    victim = next(Path(output).glob("decode/*/*/*.mp4"))
    whole = victim.read_bytes()
    victim.write_bytes(whole[:-1])
    assert run(["dataset", "copy", "--output", output, "--to", target]) == 4
    assert "6 objects copied" in (out := capsys.readouterr().out) and str(victim.relative_to(output)) in out
    victim.write_bytes(whole)
    assert run(["dataset", "copy", "--output", output, "--to", target]) == 0
    assert "1 objects copied" in (out := capsys.readouterr().out) and "6 were there" in out
    assert run(["dataset", "verify", "--output", target]) == 0


@pytest.mark.parametrize(
    ("denoise", "code", "words"),
    [
        (Comparison(phase=Phase.DENOISE, path="denoise/k/aa/a.safetensors", is_equal=True), 0, "equal to the byte"),
        (Comparison(phase=Phase.DENOISE, path="denoise/k/aa/a.safetensors", error=0.01), 4, "relative error 0.01"),
        (Comparison(phase=Phase.DENOISE, path="denoise/k/aa/a.safetensors", why_not=NOT_STORED), 3, NOT_STORED),
    ],
)
def test_reproduce_tells_by_exit_code(denoise, code, words, made: Run, capsys, monkeypatch) -> None:
    def reproduce(run: Run, id: str, engine: dict[str, str]) -> Reproduction:
        assert (run.name, id, engine) == (made.name, "abc", {"device": "cpu"})
        video = Comparison(phase=Phase.DECODE, path="decode/k/aa/a.mp4", psnr=41.234)
        said = {"id": "abcdef", "run": run.name, "prompt": "a", "seconds": 1.5, "differences": ()}
        return Reproduction(**said, comparisons=(denoise, video))

    monkeypatch.setattr("fastvideo.v1.worker.reproduce.reproduce", reproduce)
    line = ["dataset", "reproduce", "abc", "--output", made.output.uri(""), "--device", "cpu"]
    assert run(line) == code
    out = capsys.readouterr().out
    assert f"sample abcdef of run {made.name}: 'a'" in out and words in out and "PSNR 41.2 dB" in out
    assert run([*line, "--json"]) == code and json.loads(capsys.readouterr().out)["exit_code"] == code
