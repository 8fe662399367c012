"""Quotes: by the run's own ledger, else another run's, else benchmarks; and what a changed config costs."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from fastvideo.v1.dataset.plan import figures
from fastvideo.v1.dataset.plan.changes import find_changes
from fastvideo.v1.dataset.plan.planning import plan_run
from fastvideo.v1.dataset.plan.quote import quote
from fastvideo.v1.dataset.progress.ledger import LedgerRow, LedgerWriter
from fastvideo.v1.distributed.choice import LayoutChoice
from fastvideo.v1.distributed.layout import ParallelLayout
from fastvideo.v1.pipelines.phase import ALL_PHASES, Phase
from fastvideo.v1.sampling_params import CanvasRule, SamplingParams

CONFIGS = Path(__file__).parents[5] / "fastvideo" / "data" / "configs"
BENCHMARKS = Path(__file__).parents[5] / "infra" / "benchmarks"
PROMPTS = [f'{{"prompt": "p{number}"}}' for number in range(4)]


def quoted(config):
    return quote(plan_run(config, write=False), config)


def rows(file: str) -> list[dict]:
    return json.loads((BENCHMARKS / file).read_text())["rows"]


def test_figures_are_those_of_the_benchmarks() -> None:
    files = {figure.source.split(",")[0] for figure in (*figures.TEXT_ENCODERS.values(), *figures.VAES.values())}
    assert files == {"encode_umt5_h100.json", "vae_wan_h100.json", "vae_hunyuan_h100.json"}
    encode = json.loads((BENCHMARKS / "encode_umt5_h100.json").read_text())
    assert encode["tokens"] / encode["prompts"] == figures.TOKENS_A_TEXT
    (seconds,) = (row["seconds"] for row in encode["rows"] if row["batch_size"] == 256)
    assert figures.TEXT_ENCODERS["UMT5EncoderModel"].seconds == pytest.approx(seconds, rel=1e-3)
    for (_, precision), figure in figures.VAES.items():
        (seconds,) = (row["seconds"] for row in rows(figure.source.split(",")[0]) if row["case"] == f"ours+{precision}")
        assert figure.seconds == pytest.approx(seconds, rel=1e-3)


def test_without_a_ledger_benchmarks_tell(make_config, monkeypatch) -> None:
    config = make_config(*PROMPTS)
    encode, denoise, decode = quoted(config).values()
    assert (encode.missing, denoise.missing, decode.missing) == (5, 4, 4)
    assert encode.gpu_hours is None and decode.gpu_hours is None, "this model is smaller than those of the benchmarks"
    assert denoise.bytes.value == 4 * 16 * 5 * 8 * 8 and "TFLOP/s" in denoise.seconds.source
    assert decode.bytes.value == pytest.approx(17 * 64 * 64 * 0.2 / 8) and "assumed" in decode.bytes.source
    twice = quoted(make_config(*PROMPTS, sampling={"num_inference_steps": 40}))[Phase.DENOISE]
    assert twice.gpu_hours == pytest.approx(2 * denoise.gpu_hours)
    for table in (figures.TEXT_ENCODERS, figures.VAES):
        for kind, figure in table.items():
            monkeypatch.setitem(table, kind, replace(figure, width=("no such key", None)))
    encode, _, decode = quoted(config).values()
    assert encode.seconds.value == pytest.approx(2.0723 / 944) and "encode_umt5_h100.json" in encode.seconds.source
    assert decode.seconds.value == pytest.approx(1.2018 * (17 * 64 * 64) / (81 * 480 * 832))


@pytest.mark.parametrize(("name", "file"), [("wan21_t2v_1.3B", "dit_wan21_1.3B"), ("wan21_t2v_14B", "dit_wan21_14B")])
def test_full_size_models_cost_what_their_benchmarks_say(tmp_path: Path, name: str, file: str) -> None:
    configs = {"transformer": name, "text_encoder": "umt5_xxl_encoder", "vae": "wan_vae"}
    index = {"text_encoder": ["transformers", "UMT5EncoderModel"], "vae": ["diffusers", "AutoencoderKLWan"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    for component, config in configs.items():
        (tmp_path / component).mkdir()
        shutil.copy(CONFIGS / f"{config}.json", tmp_path / component / "config.json")
    components = {Phase.DENOISE: ("transformer",)}
    model = SimpleNamespace(model_root=str(tmp_path), canvas=CanvasRule(spatial=16, temporal=4), components=components)
    found = figures.ModelFigures(model, lambda work: work(SamplingParams()))  # 480x832x81, 50 guided steps
    (measured,) = (row["ms"] for row in rows(f"{file}_h100.json") if row["case"] == "ours")
    assert found.seconds(Phase.DENOISE, ParallelLayout(), "auto").value == pytest.approx(measured * 0.1, rel=0.05)
    assert found.seconds(Phase.DECODE, ParallelLayout(), "auto").value == pytest.approx(1.2018)
    assert found.seconds(Phase.DECODE, ParallelLayout(), "bfloat16").value == pytest.approx(0.7856)
    choices = {phase: LayoutChoice(layout=ParallelLayout(data=2, cfg=2), reason="a test") for phase in Phase}
    of_a_job = figures.benchmark_seconds(model, SamplingParams(), choices, "auto")
    assert of_a_job[Phase.DENOISE] == pytest.approx(measured * 0.1 / 2, rel=0.05), "two GPUs share a sample"
    assert found.bytes(Phase.ENCODE, crf=18).value == pytest.approx(38.9 * 4096 * 2, rel=1e-3)


def test_rows_that_ask_for_more_cost_more(make_config) -> None:
    plain = quoted(make_config(*PROMPTS))
    asked = quoted(make_config(*PROMPTS[:2], '{"prompt": "long", "steps": 60}', '{"prompt": "free", "guidance": 1}'))
    mean = (2 + 60 / 20 + 1 / 2) / 4
    assert asked[Phase.DENOISE].seconds.value == pytest.approx(mean * plain[Phase.DENOISE].seconds.value)
    assert asked[Phase.DECODE].bytes.value == plain[Phase.DECODE].bytes.value


def test_the_runs_own_first_shards_tell_before_anything_else(make_config) -> None:
    config = make_config(*PROMPTS)
    run = plan_run(config).run
    with LedgerWriter(run, Phase.DENOISE) as ledger:
        for number, seconds in enumerate((10.0, 30.0, None)):
            row = LedgerRow(id=f"{number}", bytes=100, sha256="", started=0.0, seconds=seconds, device="NVIDIA H100")
            ledger.add(row)
    found = quoted(config)[Phase.DENOISE]
    assert (found.seconds.value, found.bytes.value) == (20.0, 100.0)
    assert found.gpu_hours == 4 * 20 / 3600 and found.total_bytes == 400
    assert found.seconds.source == "this run's ledger: mean of 2 on NVIDIA H100"
    on_two = make_config(*PROMPTS, engine={"num_gpus": 4, "sp_size": 2, "ring_size": 2})
    assert quoted(on_two)[Phase.DENOISE].seconds.value == 40.0, "both GPUs of a sample cost"


def test_another_runs_ledger_is_scaled_by_what_differs(make_config, make_whole) -> None:
    old = make_whole(make_config(*PROMPTS))  # 2 seconds each
    more = make_config(*PROMPTS, sampling={"num_inference_steps": 30}, video={"crf": 24})
    encode, denoise, decode = quoted(more).values()
    assert (encode.missing, denoise.missing, decode.missing) == (0, 4, 4)
    assert denoise.seconds.value == pytest.approx(2.0 * 30 / 20)
    assert denoise.seconds.source == f"the ledger of run {old.name}: mean of 4 on cpu, x1.5 for what differs"
    assert decode.seconds.value == 2.0
    before = quoted(make_config(*PROMPTS, video={"crf": 18}))[Phase.DECODE]
    assert decode.bytes.value == pytest.approx(before.bytes.value / 2)


@pytest.mark.parametrize(
    ("values", "changed"),
    [
        ({"video": {"crf": 30}}, {Phase.DECODE: "crf 18 -> 30"}),
        (
            {"sampling": {"num_inference_steps": 30}},
            {Phase.DENOISE: "num_inference_steps 20 -> 30", Phase.DECODE: "it is made from what denoise makes"},
        ),
        ({"shard_size": 1, "jobs": 4}, None),
    ],
)
def test_a_changed_config_says_what_it_makes_again(make_config, make_whole, values, changed) -> None:
    old = make_whole(make_config(*PROMPTS))
    config = make_config(*PROMPTS[:3], '{"prompt": "new"}', **values)
    found = find_changes(plan_run(config), config)
    if changed is None:
        assert found is None
        return
    assert found.newest == old.name and found.samples == ()
    assert {change.phase: "; ".join(change.reasons) for change in found.phases} == changed
    assert [change.num_remade for change in found.phases] == [3] * len(changed)
    decode = found.phases[-1]
    assert decode.gpu_hours == 3 * 2.0 / 3600
    assert found.lines()[-1].startswith(
        f"  decode: {changed[Phase.DECODE]}: 3 that are there are made again, 0.00167 GPU"
    )


def test_other_samples_are_no_other_objects_of_the_same(make_config, make_whole) -> None:
    make_whole(make_config(*PROMPTS))
    config = make_config(*PROMPTS, sampling={"seed": 5})
    found = find_changes(plan_run(config), config)
    assert found.samples == ("seed 0 -> 5",) and found.phases == ()
    assert [part.missing for part in quoted(config).values()] == [0, 4, 4]


def test_a_negative_prompt_that_guides_nothing_changes_nothing(make_config, make_whole) -> None:
    make_whole(make_config(*PROMPTS, sampling={"guidance_scale": 1.0, "negative_prompt": "x"}))
    config = make_config(*PROMPTS, sampling={"guidance_scale": 1.0, "negative_prompt": "y"})
    found = find_changes(plan_run(config), config)
    assert found.samples == () and found.phases == ()
    assert [part.missing for part in quoted(config).values()] == [0, 0, 0]


def test_the_first_run_changes_nothing(make_config) -> None:
    config = make_config(*PROMPTS)
    assert find_changes(plan_run(config), config) is None and len(ALL_PHASES) == len(quoted(config))
