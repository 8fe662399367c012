"""A plan says in which layout each phase works; the user may say so instead, and results never depend on it."""

import json
from dataclasses import replace

import pytest

from fastvideo.v1.dataset.plan.planning import plan_run
from fastvideo.v1.dataset.runs.phase_layouts import _held_at_once, with_layout
from fastvideo.v1.distributed.layout import ParallelLayout
from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.pipelines.phase import Phase

ROW = json.dumps({"prompt": "a red circle"})


def layouts(config):
    return {phase: choice.layout for phase, choice in plan_run(config, write=False).layouts.items()}


def test_samples_go_side_by_side_unless_told_otherwise(make_config):
    assert layouts(make_config(ROW)) == dict.fromkeys(Phase, ParallelLayout())
    assert layouts(make_config(ROW, engine={"num_gpus": 4})) == dict.fromkeys(Phase, ParallelLayout(data=4))


def test_for_latency_a_sample_is_shared_where_that_is_faster(make_config):
    large = {"height": 720, "width": 1280, "num_frames": 81}
    engine = {"num_gpus": 6}
    config = make_config(ROW, engine=engine, goal="latency", sampling={"guidance_scale": 4.0, **large})
    found = layouts(config)
    assert found[Phase.DENOISE] == ParallelLayout(cfg=2, ulysses=3)
    assert found[Phase.ENCODE] == found[Phase.DECODE] == ParallelLayout(data=6)
    config = make_config(ROW, engine=engine, goal="latency", sampling={"guidance_scale": 1.0, **large})
    assert layouts(config)[Phase.DENOISE].cfg == 1
    small = {"height": 64, "width": 64, "num_frames": 5}
    config = make_config(ROW, engine=engine, goal="latency", sampling=small)
    assert layouts(config)[Phase.DENOISE] == ParallelLayout(data=6), "collectives would take longer than the work"


def test_a_plan_says_how_the_last_samples_are_spread(make_config):
    rows = [json.dumps({"prompt": f"p{number}"}) for number in range(9)]
    large = {"height": 720, "width": 1280, "num_frames": 81, "guidance_scale": 4.0, "num_inference_steps": 1000}
    config = make_config(*rows, engine={"num_gpus": 4}, sampling=large)
    plan = plan_run(config, write=False)
    (piece,) = plan.spread
    assert (piece.num_samples, piece.layout.data, piece.layout.size) == (1, 1, 4)
    assert f"1 samples on {piece.layout.brief}: " in plan.told_layouts()["denoise"]
    assert not plan_run(replace(config, spread_tail=False), write=False).spread
    sizes = replace(config, engine=replace(config.engine, sp_size=2, ring_size=2))
    assert not plan_run(sizes, write=False).spread, "the user's word"


def test_sizes_of_the_engine_are_the_users_word(make_config):
    plan = plan_run(make_config(ROW, engine={"num_gpus": 6, "sp_size": 3}), write=False)
    assert {choice.layout for choice in plan.layouts.values()} == {ParallelLayout(data=2, ulysses=3)}
    assert "set by engine" in plan.layouts[Phase.DENOISE].reason


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ({"num_gpus": 2, "sp_size": 2}, "sp_size=2, ring_size=2, tp_size=1"),
        ({"num_gpus": 12, "cfg_size": 2, "sp_size": 6}, "sp_size=6, ring_size=2, tp_size=1"),
        ({"num_gpus": 2, "tp_size": 2}, "sp_size=2, ring_size=2, tp_size=1"),
    ],
)
def test_sizes_that_do_not_divide_the_heads_are_said_while_planning(make_config, engine, message):
    with pytest.raises(ValueError, match=f"the transformer's 3 heads .* nearest: .*{message}"):
        plan_run(make_config(ROW, engine=engine, sampling={"guidance_scale": 4.0}), write=False)


def test_what_does_not_fit_is_said_while_planning(make_config):
    with pytest.raises(ValueError, match=r"num_gpus=2: .* GiB"):
        plan_run(make_config(ROW, engine={"num_gpus": 2}, gpu_memory=1.0), write=False)


def test_an_engine_takes_the_sizes_of_a_layout_and_the_run_keeps_its_name(make_config):
    config = make_config(ROW, engine={"num_gpus": 12})
    layout = ParallelLayout(data=2, cfg=2, ring=3)
    assert with_layout(config.engine, layout).layout == layout
    one = plan_run(make_config(ROW), write=False).run
    assert plan_run(config, write=False).run.keys == one.keys


@pytest.mark.parametrize(
    "engine, held",
    [({}, 5 + 3), ({"expert_offload": True}, 5), ({"layer_offload": True}, 0)],
)
def test_weights_that_wait_in_host_memory_take_no_room(engine, held):
    assert _held_at_once({"transformer": 3.0, "transformer_2": 5.0}, FastVideoArgs(**engine)) == held
    assert _held_at_once({"vae": 2.0}, FastVideoArgs(**engine)) == 2
