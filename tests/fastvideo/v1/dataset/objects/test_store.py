"""One writer wins, whatever the store; errors come as one of three answers."""

import errno
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from fastvideo.v1.dataset.objects.local_files import TEMPORARY_PREFIX, make_folder
from fastvideo.v1.dataset.objects.store import Store
from fastvideo.v1.dataset.objects.store_errors import StoreMisconfigured, StoreUnavailable


def check_contract(store: Store, tmp_path: Path) -> None:
    assert store.create("a/b/c.bin", b"first")
    assert not store.create("a/b/c.bin", b"second")
    assert store.read("a/b/c.bin") == b"first"
    local = tmp_path / "whole.mp4"
    local.write_bytes(b"video")
    assert store.create_from_file("a/b/d.mp4", str(local))
    assert not store.create_from_file("a/b/d.mp4", str(local))
    store.overwrite("a/step", b"1")
    store.overwrite("a/step", b"22")
    assert store.read("a/step") == b"22"
    assert [(info.path, info.size) for info in store.list("a")] == [("a/b/c.bin", 5), ("a/b/d.mp4", 5), ("a/step", 2)]
    assert store.folders("a") == ["b"]
    assert [info.path for infos in store.list_sharded("a") for info in infos] == ["a/b/c.bin", "a/b/d.mp4"]
    assert abs(store.list("a")[0].modified - time.time()) < 60
    assert store.exists("a/b/c.bin") and not store.exists("a/b/x")
    aside = store.set_aside("a/b/c.bin")
    assert not store.exists("a/b/c.bin") and store.read(aside) == b"first"
    assert store.create("a/b/c.bin", b"again")
    store.delete("a/b/c.bin")
    store.delete("a/b/c.bin")
    assert [info.path for info in store.list("a/b")] == ["a/b/d.mp4"]
    with pytest.raises(FileNotFoundError):
        store.read("a/b/c.bin")
    assert store.list("nothing") == [] and list(store.list_sharded("nothing")) == [] and store.folders("nothing") == []
    assert list(store.read_many(["a/step"] * 40)) == [b"22"] * 40
    store.check_exclusive_create()


def check_one_of_eight_wins(store: Store) -> None:
    for round in range(5):
        path = f"race/{round}"
        with ThreadPoolExecutor(8) as pool:
            writers = [b"%d" % writer * 1000 for writer in range(8)]
            won = list(pool.map(lambda data, path=path: store.create(path, data), writers))
        assert won.count(True) == 1
        assert store.read(path) == writers[won.index(True)]


def test_contract_on_local_disk(tmp_path: Path) -> None:
    check_contract(Store(str(tmp_path / "store")), tmp_path)
    check_contract(Store(f"file://{tmp_path}/other"), tmp_path)


def test_contract_in_memory(tmp_path: Path) -> None:
    check_contract(Store(f"memory://{tmp_path}"), tmp_path)


def test_contract_on_s3(s3_store: Store, tmp_path: Path) -> None:
    check_contract(s3_store, tmp_path)


def test_one_of_eight_writers_wins_on_local_disk(tmp_path: Path) -> None:
    check_one_of_eight_wins(Store(str(tmp_path)))
    assert not list(tmp_path.rglob(f"{TEMPORARY_PREFIX}*"))


def test_one_of_eight_writers_wins_on_s3(s3_store: Store) -> None:
    check_one_of_eight_wins(s3_store)


def test_large_objects_are_created_exclusively_on_s3(s3_store: Store, tmp_path: Path) -> None:
    """s3fs would send 100 MiB and more in parts, whose exclusiveness servers do not agree about."""
    large = tmp_path / "large.mp4"
    large.write_bytes(b"0" * (101 * 2**20))
    assert s3_store.create_from_file("large.mp4", str(large))
    assert not s3_store.create_from_file("large.mp4", str(large))
    assert not s3_store.create("large.mp4", large.read_bytes())


def test_one_store_sees_at_once_what_another_wrote(s3_store: Store) -> None:
    other = Store(s3_store.uri(""), patience=5)
    assert s3_store.list("a") == [] and other.list("a") == []
    s3_store.create("a/bb/1", b"x")
    assert [info.path for infos in other.list_sharded("a") for info in infos] == ["a/bb/1"]
    s3_store.delete("a/bb/1")
    assert not other.exists("a/bb/1") and other.list("a") == []


@pytest.mark.parametrize("s3", ["seaweed"], indirect=True)
def test_a_thousand_objects_and_more_are_listed(s3_store: Store) -> None:
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda number: s3_store.create(f"many/aa/{number:04d}", b"x"), range(1001)))
    assert sum(map(len, s3_store.list_sharded("many"))) == 1001


def test_a_missing_bucket_is_named_in_one_line(s3) -> None:
    store = Store("s3://no-such-bucket-here/x", patience=5)
    uses = [lambda: store.list("a"), lambda: store.folders("a"), lambda: store.create("a", b"")]
    for use in uses[: 2 if s3.checks_credentials else 3]:  # SeaweedFS makes the bucket for an administrator's PUT
        with pytest.raises(StoreMisconfigured, match=r"s3://no-such-bucket-here/x.*bucket does not exist") as caught:
            use()
        assert "\n" not in str(caught.value)


def test_wrong_credentials_are_told_at_once_without_quoting_them(s3, monkeypatch: pytest.MonkeyPatch) -> None:
    if not s3.checks_credentials:
        pytest.skip("moto accepts any secret")
    for key, secret in (("wrong-key", "right-secret"), ("right-key", "wrong-secret")):
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
        store = Store("s3://videos/x", patience=30)
        started = time.monotonic()
        for use in (lambda: store.create("a", b""), lambda: store.list("a"), lambda: store.read("a")):  # noqa: B023
            with pytest.raises(StoreMisconfigured, match=r"access refused.*AWS_ACCESS_KEY_ID") as caught:
                use()
            assert "secret" not in str(caught.value).replace("AWS_SECRET_ACCESS_KEY", "") and key not in str(
                caught.value
            )
        assert time.monotonic() - started < 10


def test_a_server_that_is_away_is_waited_for_then_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    store = Store("s3://videos/x", patience=2)
    for use in (lambda: store.create("a", b""), lambda: store.list("a"), lambda: store.exists("a")):
        started = time.monotonic()
        with pytest.raises(StoreUnavailable, match="s3://videos/x"):
            use()
        assert 1 < time.monotonic() - started < 10


def test_a_server_that_comes_back_in_time_is_not_noticed(s3_store: Store, s3) -> None:
    s3.process.send_signal(signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(1) as pool:
            created = pool.submit(s3_store.create, "late", b"data")
            time.sleep(1)
            s3.process.send_signal(signal.SIGCONT)
            assert created.result(30)
    finally:
        s3.process.send_signal(signal.SIGCONT)


def test_a_store_that_overwrites_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store("memory://overwriting")
    overwriting = type(store._fs).pipe_file
    monkeypatch.setattr(
        type(store._fs), "pipe_file", lambda self, path, value, mode="create": overwriting(self, path, value)
    )
    with pytest.raises(StoreMisconfigured, match="overwrites"):
        store.check_exclusive_create()


def test_a_probe_whose_answer_was_lost_is_no_reason_to_refuse_a_store(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store("memory://lossy", patience=5)
    pipe, lost = type(store._fs).pipe_file, []

    def lose_first_answer(self, path, value, mode="create"):
        pipe(self, path, value, mode=mode)
        if not lost:
            lost.append(path)
            raise TimeoutError("no answer")

    monkeypatch.setattr(type(store._fs), "pipe_file", lose_first_answer)
    store.check_exclusive_create()
    assert lost and not store.list("")


def test_what_another_has_put_aside_is_put_aside(tmp_path: Path) -> None:
    for store in (Store(str(tmp_path / "store")), Store("memory://aside")):
        store.create("a/bb/1", b"x")
        store.set_aside("a/bb/1")
        store.set_aside("a/bb/1")
        assert not store.exists("a/bb/1") and len(store.list("damaged")) == 1


def test_credentials_in_a_uri_are_refused_and_not_repeated() -> None:
    with pytest.raises(StoreMisconfigured) as caught:
        Store("s3://key:hidden@bucket/x")
    assert "hidden" not in str(caught.value)


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StoreMisconfigured, match="file/output"):
        Store(str(tmp_path / "file" / "output")).check_exclusive_create()


def test_a_killed_writer_leaves_nothing_or_all(tmp_path: Path) -> None:
    """SIGKILL at random moments while a process creates objects: each that is there is whole."""
    script = (
        "import sys, itertools\nfrom fastvideo.v1.dataset.objects.store import Store\nstore = Store(sys.argv[1])\n"
        "for number in itertools.count():\n    store.create(f'aa/{sys.argv[2]}-{number}', b'x' * 3_000_000)\n"
    )
    store = Store(str(tmp_path))
    for attempt in range(3):
        process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path), str(attempt)], env=os.environ)
        while not store.list("aa"):
            time.sleep(0.01)
        time.sleep(0.5 + 0.037 * attempt)
        process.kill()
        process.wait()
    objects = store.list("aa")
    assert objects and all(info.size == 3_000_000 for info in objects)


def test_a_file_that_goes_during_a_listing_hides_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, scandir = Store(str(tmp_path)), os.scandir
    for name in "abc":
        store.create(f"aa/bb/{name}", b"x")

    def scan(path: str) -> Any:
        if not path.endswith("bb"):
            return scandir(path)
        entries = [*scandir(path)]
        os.unlink(entries[0].path)
        return nullcontext(entries)

    monkeypatch.setattr(os, "scandir", scan)
    assert [len(infos) for infos in store.list_sharded("aa")] == [2]


@pytest.mark.parametrize("code, error", [(errno.EACCES, StoreMisconfigured), (errno.ESTALE, StoreUnavailable)])
def test_a_folder_that_cannot_be_read_is_not_taken_for_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, error: type[Exception]
) -> None:
    store = Store(str(tmp_path), patience=0)
    store.create("aa/bb/c", b"x")
    scandir = os.scandir

    def fail(path: str) -> Any:
        if path.endswith("bb"):
            raise OSError(code, os.strerror(code), path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", fail)
    uses = (
        lambda: store.list("aa"),
        lambda: [*store.list_sharded("aa")],
        store.list_temporary,
        lambda: store.folders("aa/bb"),
    )
    for use in uses:
        with pytest.raises(error, match=f"{tmp_path}.*{os.strerror(code)}"):
            use()


def test_threads_may_make_the_same_folder_at_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        for turn in range(40):
            list(pool.map(make_folder, 8 * [str(tmp_path / f"{turn}/a/b/c/d/e/f/g/h")]))
