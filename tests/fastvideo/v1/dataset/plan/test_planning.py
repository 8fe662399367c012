"""Planning: the same prompts make the same samples, and nothing is ever planned twice."""

import json
import os
import random
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from fastvideo.v1.dataset.objects.store import Store
from fastvideo.v1.dataset.plan import sample_log
from fastvideo.v1.dataset.plan.benchmark import bench_planning
from fastvideo.v1.dataset.plan.planning import plan_run
from fastvideo.v1.dataset.runs.run import list_runs, open_run
from fastvideo.v1.dataset.runs.sample import derive_seed, sample_id
from fastvideo.v1.pipelines.phase import Phase
from fastvideo.v1.sampling_params import SamplingOverrides

# Dies at a moment that it is told: before a part is linked to its place, or right after.
MORTAL_PLANNER = """
import os, signal, sys
from fastvideo.v1.dataset.config import RunConfig
from fastvideo.v1.dataset.plan import planning, sample_log

left = int(sys.argv[3])
link = os.link

def pass_moment(path):
    global left
    left -= "/samples/" in path
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

def link_between_moments(source, target):
    pass_moment(target)
    link(source, target)
    pass_moment(target)

os.link = link_between_moments
sample_log.PART_ROWS = 100
planning.plan_run(RunConfig(prompts=sys.argv[1], output=sys.argv[2]))
"""


def prompt(text: str, **values) -> str:
    return json.dumps({"prompt": text, **values})


def ids(config) -> list[str]:
    return [sample.id for sample in open_run(config.output).iter_samples()]


def test_ids_depend_neither_on_position_nor_on_other_rows(make_config, tmp_path: Path) -> None:
    first = plan_run(make_config(prompt("a"), prompt("b"), prompt("c"), output=str(tmp_path / "1")))
    second = plan_run(make_config(prompt("c"), prompt("x"), prompt("a"), output=str(tmp_path / "2")))
    by_prompt = [{sample.prompt: sample.id for sample in plan.run.iter_samples()} for plan in (first, second)]
    assert by_prompt[0]["a"] == by_prompt[1]["a"] and by_prompt[0]["c"] == by_prompt[1]["c"]
    assert first.run.name == second.run.name and list(by_prompt[1]) == ["c", "x", "a"]


def test_equal_rows_are_one_sample_that_says_how_often(make_config) -> None:
    plan = plan_run(make_config(prompt("a"), prompt("b"), prompt(" a ", height=64, guidance=4), prompt("a", steps=3)))
    assert (plan.num_samples, plan.num_new, plan.num_repeated) == (3, 3, 1)
    assert [(s.prompt, s.requested) for s in plan.run.iter_samples()] == [("a", 2), ("b", 1), ("a", 1)]
    assert plan.scan[Phase.ENCODE].total == 3  # two texts and the empty negative prompt


def test_planning_again_adds_only_what_is_new_and_follows_the_counts(make_config) -> None:
    plan_run(make_config(prompt("a"), prompt("a"), prompt("b")))
    config = make_config(prompt("b"), prompt("a"), prompt("new"), prompt("b"))
    plan = plan_run(config)
    assert (plan.num_samples, plan.num_new) == (3, 1)
    assert [(s.prompt, s.requested) for s in plan.run.iter_samples()] == [("a", 1), ("b", 2), ("new", 1)]
    assert plan_run(config).num_new == 0 and len(list_runs(Store(config.output))) == 1


def test_seeds_are_the_rows_own_or_derived(make_config) -> None:
    config = make_config(prompt("a", repeats=3), prompt("b", seed=7), prompt("c", seed=7, repeats=2))
    run = plan_run(config).run
    assert [sample.seed for sample in run.iter_samples()] == [
        *(derive_seed("a", 0, repeat) for repeat in range(3)), 7, 7, derive_seed("c", 7, 1),
    ]  # fmt: skip
    other = plan_run(replace(config, sampling=replace(config.sampling, seed=1))).run
    assert other.name != run.name and other.keys == run.keys
    assert [s.id for s in other.iter_samples()][3] == [s.id for s in run.iter_samples()][3]


def test_bad_rows_are_kept_out_and_recorded(make_config, tmp_path: Path) -> None:
    plan = plan_run(make_config(prompt("good"), prompt(""), prompt("odd", height=65), prompt("long", frames=16), "{"))
    assert (plan.num_samples, plan.num_rejected) == (1, 4)
    (file,) = (tmp_path / "output").glob("runs/*/rejected/*.jsonl")
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert [record["source"].rpartition(":")[2] for record in records] == ["2", "3", "4", "5"]
    assert "multiple of 16" in records[1]["reason"] and "4k+1" in records[2]["reason"]
    plan_run(make_config(prompt("good")))
    assert not file.exists()


def test_no_good_row_or_an_impossible_size_ends_in_one_line(make_config) -> None:
    with pytest.raises(ValueError, match=r"no row that can be used; the first: .*:1: empty prompt"):
        plan_run(make_config(prompt("")))
    with pytest.raises(ValueError, match="width=70 must be a multiple of 16"):
        plan_run(make_config(prompt("a"), sampling={"width": 70}))


def test_a_look_ahead_writes_nothing_and_tells_the_same(make_config, tmp_path: Path) -> None:
    config = make_config(prompt("a"), prompt("b"), prompt("a"))
    ahead = plan_run(config, write=False)
    assert not (tmp_path / "output").exists()
    plan = plan_run(config)
    assert (ahead.num_samples, ahead.num_new, ahead.num_repeated) == (plan.num_samples, plan.num_new, plan.num_repeated)
    assert ahead.run.name == plan.run.name
    assert {phase: part.missing for phase, part in ahead.scan.items()} == {
        phase: part.missing for phase, part in plan.scan.items()
    }


def test_without_guidance_a_negative_prompt_is_no_part_of_the_sample(make_config, caplog) -> None:
    rows = [prompt("a"), prompt("a", negative_prompt="y"), prompt("a", negative_prompt=""), prompt("b", guidance=4)]
    plan = plan_run(make_config(*rows, sampling={"guidance_scale": 1.0, "negative_prompt": "x"}))
    made = [(sample.prompt, sample.negative_prompt, sample.requested) for sample in plan.run.iter_samples()]
    assert made == [("a", "", 3), ("b", "x", 1)]
    assert plan.scan[Phase.ENCODE].total == 3, "two prompts, and the negative one of the sample that is guided"
    assert next(plan.run.iter_samples()).id == sample_id("a", "", derive_seed("a", 0, 0), {})
    (line,) = (message for message in caplog.messages if "negative" in message)
    assert line.startswith("the negative prompt of 2 rows is not used")


def test_a_rows_guidance_is_for_both_experts_and_part_of_what_the_sample_is(make_config, tmp_path: Path) -> None:
    rows = [prompt("a", guidance=scale) for scale in (4.0, 3.5, 1.0)]
    scales = {"guidance_scale": 4.0, "guidance_scale_2": 3.0}
    two = plan_run(make_config(*rows, sampling=scales, output=str(tmp_path / "two"))).run
    one = plan_run(make_config(*rows, sampling={"guidance_scale": 4.0}, output=str(tmp_path / "one"))).run
    requests = [sample.sampling(two.sampling) for sample in two.iter_samples()]
    assert [(request.guidance_scale, request.guidance_scale_2) for request in requests[:2]] == [(4, None), (3.5, None)]
    same = [a.id == b.id for a, b in zip(two.iter_samples(), one.iter_samples(), strict=True)]
    assert same == [False, False, True], "without guidance both experts do the same whatever their scales"
    again = SamplingOverrides(guidance_scale=4.0).apply(two.sampling)
    assert again.guidance_scale_2 is None and SamplingOverrides(height=64).apply(two.sampling).guidance_scale_2 == 3.0


def test_another_store_for_the_same_run_is_refused(make_config, tmp_path: Path) -> None:
    plan_run(make_config(prompt("a"), store=str(tmp_path / "objects")))
    assert plan_run(make_config(prompt("a"))).run.objects.uri("") == str(tmp_path / "objects")
    with pytest.raises(ValueError, match=r"keeps its objects in .*objects"):
        plan_run(make_config(prompt("a"), store=str(tmp_path / "elsewhere")))


def test_two_planners_at_once_plan_each_sample_once(make_config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_log, "PART_ROWS", 50)
    config = make_config(*(prompt(f"p{n}") for n in range(500)))
    other = Path(config.prompts).with_name("other.jsonl")
    other.write_text("".join(prompt(f"p{n}") + "\n" for n in range(250, 750)))
    configs = [config, replace(config, prompts=str(other))] * 2
    with ThreadPoolExecutor(4) as pool:
        plans = list(pool.map(plan_run, configs))
    found = ids(config)
    assert len(found) == len(set(found)) == 750
    assert sum(plan.num_new for plan in plans) == 750


def test_a_planner_killed_anywhere_is_made_good_by_the_next(make_config) -> None:
    config = make_config(*(prompt(f"p{n}") for n in range(3000)))
    for _ in range(2):
        moment = random.randint(2, 25)  # at the most thirteen parts a life, of thirty
        command = [sys.executable, "-c", MORTAL_PLANNER, config.prompts, config.output, str(moment)]
        assert subprocess.run(command, env=os.environ, check=False).returncode == -signal.SIGKILL
        (run,) = (Path(config.output) / "runs").iterdir()
        assert 0 < len(list((run / "samples").glob("*.parquet"))) < 30, moment
    plan = plan_run(config)
    assert plan.num_samples == 3000
    assert [sample.prompt for sample in plan.run.iter_samples()] == [f"p{n}" for n in range(3000)]


def test_a_run_on_s3_is_the_same_run(make_config, s3_store: Store) -> None:
    config = make_config(prompt("a"), prompt("b"))
    here, there = plan_run(config), plan_run(replace(config, output=s3_store.uri("")))
    assert there.run.name == here.run.name
    assert list(open_run(s3_store.uri("")).iter_samples()) == list(here.run.iter_samples())
    assert plan_run(replace(config, output=s3_store.uri(""))).num_new == 0


def test_an_unknown_run_is_named_with_those_there_are(make_config, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no run yet"):
        open_run(str(tmp_path / "output"))
    run = plan_run(make_config(prompt("a"))).run
    with pytest.raises(ValueError, match=f"'other' is not in .*; there are: {run.name}"):
        open_run(str(tmp_path / "output"), "other")
    assert open_run(str(tmp_path / "output"), run.name) == open_run(str(tmp_path / "output"))


def test_planning_loads_neither_torch_nor_prefect(make_config) -> None:
    config = make_config(prompt("a"))
    script = (
        "import sys\nfrom fastvideo.v1.dataset.plan import planning\n"
        "from fastvideo.v1.dataset.progress import recovery, status\n"
        "from fastvideo.v1.dataset.publishing import publish\n"
        "assert not {'torch', 'prefect', 'transformers'} & set(sys.modules), 'loaded at import'\n"
    )
    subprocess.run([sys.executable, "-c", script, config.output], check=True, env=os.environ)


def test_the_benchmark_counts_seconds_and_memory() -> None:
    figures = bench_planning(num_prompts=2000, num_objects=100)
    assert figures["plan_seconds"] > 0 and 20 < figures["plan_peak_mib"] < 1024 and figures["scan_seconds"] > 0
