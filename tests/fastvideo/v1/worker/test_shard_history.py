from types import SimpleNamespace

from fastvideo.v1.worker.shard_history import ShardHistory, put_off


def lose_job(history, began, blamed=None, has_made=False):
    """A job of two ranks, each with its last item under way."""
    history.begin_job()
    for rank, id in enumerate(began):
        history.take({"event": "began", "rank": rank, "ids": ["earlier"]})
        history.take({"event": "began", "rank": rank, "ids": [id]})
    if has_made:
        history.take({"event": "committed", "id": "earlier"})
    if blamed:
        history.take({"event": "blamed", "id": blamed, "error": "RuntimeError: a fault"})
    return history.end_job()


def test_what_was_under_way_is_suspect_and_only_what_ended_the_job_is_counted():
    history = ShardHistory()
    assert not lose_job(history, "ab", blamed="a")
    assert history.suspects == {"b": 0, "a": 1}
    assert not lose_job(history, "ab"), "a host that is lost tells nothing"
    assert history.suspects == {"b": 0, "a": 1}
    assert lose_job(history, "a", blamed="a") and history.suspects["a"] == 2


def test_a_machine_that_ends_every_job_at_once_is_not_started_for_ever():
    history = ShardHistory()
    assert not any(lose_job(history, id, blamed=id) for id in "abcdefgh")
    assert set(history.suspects.values()) == {1}
    assert lose_job(history, "i", blamed="i", has_made=True)


def test_suspects_come_last_and_alone():
    groups = [[SimpleNamespace(id=id) for id in ids] for ids in ("abc", "d", "ef")]
    ordered = put_off(groups, {"f": 0, "a": 2, "d": 1})
    assert [[item.id for item in group] for group in ordered] == [["b", "c"], ["e"], ["f"], ["d"], ["a"]]
