"""Slides on a disk of the node: bounded, once per node, removed."""

import fcntl
import os
import socket
import threading

import pytest

from cohorts.pairing import Case
from cohorts.staging import Place, Staging, remove_abandoned


def case(folder, name, size, label="tif"):
    slide = folder / f"{name}.tif"
    slide.parent.mkdir(parents=True, exist_ok=True)
    slide.write_bytes(os.urandom(size))
    if label is None:
        return Case(name, slide, None)
    truth = folder / f"{name}_Mask.{label}"
    truth.write_bytes(os.urandom(100))
    return Case(name, slide, truth)


def alone(value):
    return [value]


def test_copies_are_equal_and_keep_their_names(tmp_path):
    cases = [case(tmp_path / "a", "tumor_001", 5000), case(tmp_path / "a", "tumor_002", 10, label="xml")]
    staging = Staging(tmp_path / "disk", 10**6, Place(0, 1), alone)
    moved, note = staging.copy(cases)
    assert note.startswith("3 of 3 files")
    for old, new in zip(cases, moved, strict=True):
        assert new.slide_path != old.slide_path
        assert new.slide_path.name == old.slide_path.name
        assert new.slide_path.read_bytes() == old.slide_path.read_bytes()
    assert moved[0].label_path.read_bytes() == cases[0].label_path.read_bytes()
    assert moved[1].label_path == cases[1].label_path  # XML is read once
    staging.close()
    assert list((tmp_path / "disk").iterdir()) == []
    assert cases[0].slide_path.exists()


def test_the_bound_holds_and_the_rest_is_read_in_place(tmp_path):
    cases = [case(tmp_path / "a", f"s{i}", size, label=None) for i, size in enumerate((400, 700, 300))]
    staging = Staging(tmp_path / "disk", 1000, Place(0, 1), alone)
    moved, note = staging.copy(cases)
    assert note.startswith("2 of 3 files")
    assert [new.slide_path == old.slide_path for new, old in zip(moved, cases, strict=True)] == [False, True, False]
    staging.close()


def test_companion_files_come_along(tmp_path):
    slide = tmp_path / "a" / "s.mrxs"
    (tmp_path / "a" / "s").mkdir(parents=True)
    slide.write_bytes(b"index")
    (tmp_path / "a" / "s" / "Data0000.dat").write_bytes(b"pixels")
    staging = Staging(tmp_path / "disk", 1000, Place(0, 1), alone)
    (moved,), _ = staging.copy([Case("s", slide, None)])
    assert (moved.slide_path.with_suffix("") / "Data0000.dat").read_bytes() == b"pixels"
    staging.close()


def test_ranks_of_a_node_share_one_folder_and_the_work(tmp_path):
    cases = [case(tmp_path / "a", f"s{i}", 10, label=None) for i in range(5)]
    meeting, entries, results = threading.Barrier(2), [None, None], [None, None]

    def rank(number):
        def gather(value):
            entries[number] = value
            meeting.wait(timeout=20)
            found = list(entries)
            meeting.wait(timeout=20)
            return found

        staging = Staging(tmp_path / "disk", 10**6, Place(number, 2), gather)
        moved, _ = staging.copy(cases)
        gather(None)
        results[number] = [m.slide_path for m in moved]
        assert all(path.exists() for path in results[number])
        staging.close()

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert results[0] == results[1]
    assert len(set(results[0])) == 5
    assert list((tmp_path / "disk").iterdir()) == []


def test_what_a_killed_run_left_is_removed_but_not_what_is_in_use(tmp_path):
    for name in ("1", "2"):
        root = tmp_path / f"widefov-{socket.gethostname()}-{name}"
        root.mkdir()
        (root / ".lock").touch()
    (tmp_path / "widefov-elsewhere-3").mkdir()
    with (tmp_path / f"widefov-{socket.gethostname()}-1" / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        remove_abandoned(tmp_path)
    assert sorted(p.name[-1] for p in tmp_path.iterdir()) == ["1", "3"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_an_unwritable_folder_is_an_error(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match="disk"):
        Staging(tmp_path / "disk", 10, Place(0, 1), alone)


def test_a_file_in_place_of_the_folder_is_an_error_on_every_rank(tmp_path):
    (tmp_path / "disk").touch()
    seen = []

    def gather(value):
        seen.append(value)
        return [value]

    with pytest.raises(OSError, match="disk"):
        Staging(tmp_path / "disk", 10, Place(0, 1), gather)
    assert isinstance(seen[0], OSError)  # the other ranks hear of it and raise, too
