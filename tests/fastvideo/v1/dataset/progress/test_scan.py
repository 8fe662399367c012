"""What there is and what is missing, phase by phase."""

from fastvideo.v1.dataset.layout import object_path, step_path
from fastvideo.v1.dataset.plan.planning import plan_run
from fastvideo.v1.dataset.progress.scan import scan
from fastvideo.v1.dataset.waves.shards import write_shards
from fastvideo.v1.pipelines.phase import Phase
from tests.fastvideo.v1.dataset.run_contents import counts, ids, make_wave, prompts


def test_every_phase_counts_on_its_own(make_config, make_object) -> None:
    run = plan_run(make_config(*prompts(4))).run
    assert counts(run) == {"encode": (5, 0, 0, 0, 5), "denoise": (4, 0, 0, 0, 4), "decode": (4, 0, 0, 0, 4)}
    first, second, *_ = ids(run)
    data = make_object(run, Phase.DECODE, first)
    make_object(run, Phase.DENOISE, second)
    run.objects.overwrite(step_path(run.keys[Phase.DENOISE], ids(run)[2]), b"half way")
    run.objects.create(object_path(Phase.DENOISE, run.keys[Phase.DENOISE], "f" * 32), b"another run's")
    assert counts(run) == {"encode": (5, 0, 0, 0, 5), "denoise": (4, 1, 0, 0, 3), "decode": (4, 1, 0, 0, 3)}
    found = scan(run)
    assert found[Phase.DECODE].bytes == len(data) and found[Phase.DECODE].unindexed["id"].to_pylist() == [first]
    assert found[Phase.DENOISE].missing_ids.to_pylist() == [id for id in ids(run) if id != second]


def test_a_changed_decode_setting_remakes_videos_only(make_config, make_object) -> None:
    config = make_config(*prompts(3))
    run = plan_run(config).run
    make_wave(run, write_shards(run, scan(run), config, 1), make_object)
    other = plan_run(make_config(*prompts(3), video={"crf": 30}))
    assert other.run.name != run.name
    assert {str(phase): part.missing for phase, part in other.scan.items()} == {"encode": 0, "denoise": 0, "decode": 3}
    more = plan_run(make_config(*prompts(5)))
    assert {str(phase): part.missing for phase, part in more.scan.items()} == {"encode": 2, "denoise": 2, "decode": 2}
