from fastvideo.v1.dataset.waves.wave import WaveShard
from fastvideo.v1.distributed.layout import ParallelLayout
from fastvideo.v1.pipelines.phase import Phase
from flows.schedule import Schedule


def shard(phase, index, *needs):
    return WaveShard(name=f"{phase}-{index:04d}", phase=phase, path="", count=1, needs=needs, layout=ParallelLayout())


def names(schedule):
    found = []
    while (ready := schedule.next()) is not None:
        found.append(ready.name)
    return found


def test_inputs_first_and_videos_before_new_samples():
    schedule = Schedule(
        [
            shard(Phase.ENCODE, 0),
            shard(Phase.DENOISE, 0, "encode-0000"),
            shard(Phase.DENOISE, 1, "encode-0000"),
            shard(Phase.DECODE, 0, "denoise-0000"),
            shard(Phase.DECODE, 1, "denoise-0000", "denoise-0001"),
        ]
    )
    assert names(schedule) == ["encode-0000"]
    schedule.finish("encode-0000")
    assert schedule.next().name == "denoise-0000"
    schedule.finish("denoise-0000")
    assert names(schedule) == ["decode-0000", "denoise-0001"]
    schedule.finish("denoise-0001")
    assert names(schedule) == ["decode-0001"]
    assert names(schedule) == []


def test_needs_outside_the_wave_are_there_already():
    assert names(Schedule([shard(Phase.DECODE, 0, "denoise-0009")])) == ["decode-0000"]
