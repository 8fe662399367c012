"""Samples that failed on their own account."""

from fastvideo.v1.dataset.plan.planning import plan_run
from fastvideo.v1.dataset.progress.failures import clear_failures, read_failures, record_failure
from fastvideo.v1.dataset.progress.scan import scan
from fastvideo.v1.dataset.progress.status import run_status
from fastvideo.v1.dataset.waves.shards import write_shards
from fastvideo.v1.pipelines.phase import Phase
from tests.fastvideo.v1.dataset.run_contents import counts, ids, inputs, make_wave, prompts


def test_what_failed_is_passed_over_until_a_retry_and_blocks_what_follows(make_config, make_object) -> None:
    config = make_config(*prompts(4), shard_size=100)
    run = plan_run(config).run
    broken_text = next(id for id, prompt in inputs(run).items() if prompt == "p0")
    record_failure(run, Phase.ENCODE, broken_text, "ValueError: no", "Traceback: of\nmany lines", 3)
    record_failure(run, Phase.DENOISE, ids(run)[1], "NaN latents", "", 3)
    assert counts(run) == {"encode": (5, 0, 1, 0, 4), "denoise": (4, 0, 1, 1, 2), "decode": (4, 0, 0, 2, 2)}
    shards = write_shards(run, scan(run), config, 1)
    assert [(s.phase, s.count) for s in shards] == [(Phase.ENCODE, 4), (Phase.DENOISE, 2), (Phase.DECODE, 2)]
    assert run_status(config.output).exit_code == 3
    make_wave(run, shards, make_object)
    assert write_shards(run, scan(run), config, 2) == []
    assert run_status(config.output).exit_code == 2
    assert read_failures(run, Phase.ENCODE)[0]["error"] == "ValueError: no"
    assert clear_failures(run) == 2
    assert run_status(config.output).exit_code == 3
    make_wave(run, write_shards(run, scan(run), config, 3), make_object)
    assert run_status(config.output).exit_code == 0
