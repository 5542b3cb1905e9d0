"""Files in a tar: the same bytes, read in place, hostile archives, damage, forks and pickles, killed runs."""

import contextlib
import io
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import numpy as np
import openslide
import pytest

from preprocessing import pack
from preprocessing.pack import main
from slides.packed import Member, PackedFiles, PackError, check_name, index_path, index_text
from slides.reader import Slide
from slides.synthetic.demo import position_coded
from tests.support.paths import ROOT

NAMES = {
    "a b.txt": b"one",
    'images/it\'s "x" $(touch p).txt': b"two!",
    "images/é/ü.txt": b"",
    "x" * 120 + "/" + "y" * 120 + ".txt": b"long",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, data in NAMES.items():
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (tmp_path / "set" / ".hidden").touch()
    (tmp_path / "set" / ".done").mkdir()
    (tmp_path / "set" / ".done" / "mark").touch()
    return tmp_path / "set"


def run(folder: Path, out: Path, *more: str, processes: str = "1") -> int:
    return main(["--files", str(folder), "--out", str(out), "--num_processes", processes, *more])


def contents(path: Path) -> dict[str, bytes]:
    packed = PackedFiles(path)
    return {name: packed.read(name) for name in packed}


def files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((out / "pack").iterdir())}


# -------------------------------------------------------------------------------------------------------------- writing


def test_all_files_come_back_with_and_without_the_index(folder, tmp_path, capsys):
    assert run(folder, tmp_path / "out") == 0
    assert "4 files in 1 archive (1 done), 0.00 GB" in capsys.readouterr().out
    path = tmp_path / "out" / "pack" / "set.tar"
    assert contents(path) == NAMES
    assert list(PackedFiles(path)) == sorted(NAMES)
    index = index_path(path).read_bytes()
    assert json.loads(index)["members"][0] == ["a b.txt", 512, 3]
    index_path(path).unlink()
    assert contents(path) == NAMES
    packed = PackedFiles(path)
    assert index_text(packed.members, path.stat().st_size).encode() == index
    with tarfile.open(path) as tar:
        assert {info.name: (info.mtime, info.uid, info.uname, info.mode) for info in tar} == dict.fromkeys(
            NAMES, (0, 0, "", 0o644)
        )


def test_the_same_files_give_the_same_bytes(folder, tmp_path):
    assert run(folder, tmp_path / "out") == 0
    other = tmp_path / "elsewhere" / "set"
    for name in reversed(list(NAMES)):
        (other / name).parent.mkdir(parents=True, exist_ok=True)
        (other / name).write_bytes(NAMES[name])
        (other / name).chmod(0o600)
    assert run(other, tmp_path / "again") == 0
    assert files(tmp_path / "out") == files(tmp_path / "again")


def test_a_second_run_does_nothing_and_other_files_are_packed_again(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(folder, out) == 0
    inode = (out / "pack" / "set.tar").stat().st_ino
    assert run(folder, out) == 0
    assert "4 files in 1 archive (1 unchanged)" in capsys.readouterr().out
    assert (out / "pack" / "set.tar").stat().st_ino == inode
    (folder / "a b.txt").write_bytes(b"new")
    (folder / "b.csv").write_bytes(b"b")
    assert run(folder, out) == 0
    assert contents(out / "pack" / "set.tar") == NAMES | {"a b.txt": b"new", "b.csv": b"b"}
    assert run(folder, out, "--suffix", ".CSV", "--name", "tables") == 0
    assert contents(out / "pack" / "tables.tar") == {"b.csv": b"b"}
    assert (out / "pack" / "set.tar").exists()


@pytest.mark.parametrize("processes", ["1", "2"])
def test_shards(tmp_path, processes, capsys):
    source = tmp_path / "set"
    source.mkdir()
    for index, size in enumerate([400, 500, 200, 2000, 10, 900]):
        (source / f"{index}.bin").write_bytes(bytes([index]) * size)
    out = tmp_path / "out"
    assert run(source, out, "--shard_gb", "1e-6", processes=processes) == 0
    held = {path.name: list(PackedFiles(path)) for path in sorted((out / "pack").glob("*.tar"))}
    assert held == {
        "set-00000.tar": ["0.bin", "1.bin"],
        "set-00001.tar": ["2.bin"],
        "set-00002.tar": ["3.bin"],
        "set-00003.tar": ["4.bin", "5.bin"],
    }
    assert PackedFiles(out / "pack" / "set-00003.tar").read("5.bin") == b"\5" * 900
    # Only the last shard changes; fewer shards leave none of the old ones behind.
    (source / "5.bin").unlink()
    assert run(source, out, "--shard_gb", "1e-6", processes=processes) == 0
    assert "5 files in 4 archives (1 done, 3 unchanged)" in capsys.readouterr().out
    assert run(source, out) == 0
    assert "removed, no longer part of set: set-00000, set-00001, set-00002, set-00003" in capsys.readouterr().out
    assert sorted(files(out)) == ["set.tar", "set.tar.json"]


def test_bad_input_is_one_line(folder, tmp_path, capsys):
    out = tmp_path / "out"
    (folder / "back\\slash.txt").touch()
    assert run(folder, out) == 2
    assert "1 files have names that are not allowed: 'back" in capsys.readouterr().err
    (folder / "back\\slash.txt").unlink()
    (Path(os.fsdecode(os.fsencode(folder) + b"/\xff.txt"))).touch()
    assert run(folder, out) == 2
    assert "names that are not allowed: '\\udcff.txt'" in capsys.readouterr().err
    assert run(folder, folder / "out") == 2
    assert "the archive would be packed into itself" in capsys.readouterr().err
    assert run(tmp_path / "gone", out) == 2
    assert "gone is not a folder; give the folder" in capsys.readouterr().err
    assert run(folder, out, "--suffix", "exe") == 2
    assert "has no files of these suffixes" in capsys.readouterr().err
    assert run(folder, out, "--name", "../x") == 2
    assert "wanted is a relative path without" in capsys.readouterr().err
    assert not out.exists()


def test_a_file_that_changes_meanwhile_is_not_packed_half(folder, tmp_path, monkeypatch, capsys):
    real = tarfile.TarFile.addfile
    for data, why in ((b"o", "shrank while it was packed"), (b"ONE+", "changed while it was packed")):

        def changed(tar, info, file, data=data):
            if info.name == "a b.txt":
                (folder / "a b.txt").write_bytes(data)
            real(tar, info, file)

        (folder / "a b.txt").write_bytes(b"one")
        monkeypatch.setattr(tarfile.TarFile, "addfile", changed)
        assert run(folder, tmp_path / "out") == 1
        assert f"a b.txt {why}" in capsys.readouterr().out
        assert files(tmp_path / "out") == {}


@pytest.mark.skipif(not os.access("/dev/full", os.W_OK), reason="no /dev/full")
def test_a_full_disk_leaves_nothing(folder, tmp_path, monkeypatch, capsys):
    (folder / "large").write_bytes(bytes(10**5))
    real = tarfile.TarFile
    monkeypatch.setattr(pack.tarfile, "TarFile", lambda _, *words, **more: real("/dev/full", *words, **more))
    assert run(folder, tmp_path / "out") == 2
    assert "the disk of --out" in (error := capsys.readouterr().err)
    assert "is full (" in error
    assert files(tmp_path / "out") == {}


def test_kill_9_and_again_gives_the_same_bytes(tmp_path):
    source = tmp_path / "set"
    source.mkdir()
    for index in range(3):
        (source / f"{index}.bin").write_bytes(np.random.default_rng(index).bytes(40_000_000))
    out = tmp_path / "out"
    words = ["preprocessing.pack", "--files", str(source), "--out", str(out), "--shard_gb", "0.05"]
    words += ["--num_processes", "1"]
    part = out / "pack" / ".set-00001.tar.part"
    dying = [sys.executable, "-m", "tests.support.killed", str(part), *words]
    assert subprocess.run(dying, cwd=ROOT, check=False, capture_output=True, timeout=120).returncode == -signal.SIGKILL
    assert part.stat().st_size
    assert not (out / "pack" / "set-00001.tar").exists()
    command = [sys.executable, "-m", *words]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=120)
    assert "3 files in 3 archives (2 done, 1 unchanged)" in done.stdout, done.stderr
    assert run(source, tmp_path / "whole", "--shard_gb", "0.05") == 0
    assert files(out) == files(tmp_path / "whole")


def test_mpi_ranks_write_the_same_shards(folder, tmp_path):
    mpirun = Path(sys.executable).with_name("mpirun")
    if not mpirun.exists():
        pytest.skip("no mpirun beside this python")
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    environment = os.environ | root | {"OPAL_PREFIX": str(mpirun.parents[1])}
    command = [str(mpirun), "--oversubscribe", "--bind-to", "none", "-np", "3", sys.executable, "-m"]
    command += ["preprocessing.pack", "--files", str(folder), "--out", str(tmp_path / "out"), "--shard_gb", "1e-9"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("4 files in 4 archives (4 done)") == 1
    assert run(folder, tmp_path / "alone", "--shard_gb", "1e-9") == 0
    assert files(tmp_path / "out") == files(tmp_path / "alone")


# -------------------------------------------------------------------------------------------------------------- reading


def test_a_member_is_a_file_of_its_own(folder, tmp_path):
    run(folder, tmp_path / "out")
    packed = PackedFiles(tmp_path / "out" / "pack" / "set.tar")
    name = 'images/it\'s "x" $(touch p).txt'
    with packed.open(name) as file, packed.open("a b.txt") as other:
        assert file.read(2) == b"tw"
        assert other.read() == b"one"
        assert file.read(10) == b"o!"
        assert file.read(1) == b""
        assert file.seek(-3, os.SEEK_END) == 1
        assert file.read(1) == b"w"
        assert (file.tell(), file.seekable(), file.writable()) == (2, True, False)
        assert file.seek(100) == 100
        assert file.read() == b""
        with pytest.raises(OSError, match="before the file's first byte"):
            file.seek(-5, os.SEEK_END)
    assert len(packed) == 4
    assert name in packed
    with pytest.raises(PackError, match=r"set\.tar holds no '\.\./a b\.txt'; it has 4 files: a b\.txt,"):
        packed.read("../a b.txt")


def read_in_child(packed: PackedFiles, names: list[str], queue) -> None:
    queue.put([packed.read(name) for name in names])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_it_survives_a_fork_and_a_pickle(folder, tmp_path, method):
    run(folder, tmp_path / "out")
    packed = PackedFiles(tmp_path / "out" / "pack" / "set.tar")
    assert packed.read("a b.txt") == b"one"
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=read_in_child, args=(packed, sorted(NAMES), queue))
    child.start()
    assert queue.get(timeout=60) == [NAMES[name] for name in sorted(NAMES)]
    child.join(timeout=60)
    assert packed.read("a b.txt") == b"one"
    assert pickle.loads(pickle.dumps(packed)).members == packed.members


def test_threads_share_it(tmp_path):
    source = tmp_path / "set"
    source.mkdir()
    for index in range(8):
        (source / f"{index}.bin").write_bytes(bytes([index]) * 50_000)
    run(source, tmp_path / "out")
    packed = PackedFiles(tmp_path / "out" / "pack" / "set.tar")
    good = []

    def read(index: int) -> None:
        good.append(all(packed.read(f"{index}.bin") == bytes([index]) * 50_000 for _ in range(200)))

    threads = [threading.Thread(target=read, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert good == [True] * 8


def open_paths() -> list[str]:
    """Paths of this process's open files."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the folder's own, closed by now
            found.append(os.readlink(link))
    return found


def test_files_are_closed_with_their_reader(folder, tmp_path):
    run(folder, tmp_path / "out")
    path = tmp_path / "out" / "pack" / "set.tar"
    assert open_paths().count(str(path)) == 0
    packed = PackedFiles(path)
    packed.read("a b.txt")
    assert open_paths().count(str(path)) == 1
    del packed
    assert open_paths().count(str(path)) == 0


def test_slides_are_read_in_place_and_from_memory(tmp_path):
    (tmp_path / "set").mkdir()
    position_coded(tmp_path / "set" / "é 1.tif", (700, 500), (1.0, 2.0))
    run(tmp_path / "set", tmp_path / "out")
    packed = PackedFiles(tmp_path / "out" / "pack" / "set.tar")
    slide = Slide(tmp_path / "set" / "é 1.tif")
    image = packed.vips("é 1.tif")
    np.testing.assert_array_equal(image.crop(100, 60, 300, 200).numpy(), slide.read_level(0, (100, 60), (200, 300)))
    np.testing.assert_array_equal(packed.vips("é 1.tif", page=1).numpy(), slide.thumbnail(1))
    with packed.as_file("é 1.tif") as path:
        copy = Slide(path)
        assert (copy.id, copy.um_px_xy_l0) == ("é 1", slide.um_px_xy_l0)
        np.testing.assert_array_equal(copy.thumbnail(0), slide.thumbnail(0))
        with openslide.OpenSlide(path) as other:
            assert other.dimensions == (700, 500)
    # Else its memory would stay in use.
    assert not any(str(path) in link for link in open_paths())
    assert not path.parent.exists()


# ------------------------------------------------------------------------------------------------------------- hostile


def tar_of(path: Path, *infos: tarfile.TarInfo, data: bytes = b"data") -> Path:
    with tarfile.open(path, "w") as tar:
        for info in infos:
            info.size = len(data) if info.isreg() else 0
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "a/../../b", "a//b", "./a", "a/.", "", "a\\b", "C:/a", "a\0b"])
def test_names_that_lead_elsewhere_are_refused(tmp_path, name):
    with pytest.raises(PackError, match="wanted is a relative path without"):
        check_name(name)
    path = tar_of(tmp_path / "evil.tar", tarfile.TarInfo("good"))
    index_path(path).write_text(index_text({name: Member(512, 4)}, path.stat().st_size), encoding="utf-8")
    with pytest.raises(PackError, match=r"evil\.tar: name .*wanted is a relative path"):
        PackedFiles(path)


def test_hostile_archives_without_an_index(tmp_path):
    with pytest.raises(PackError, match=r"name '\.\./a'"):
        PackedFiles(tar_of(tmp_path / "a.tar", tarfile.TarInfo("../a")))
    with pytest.raises(PackError, match="'twice' is there twice"):
        PackedFiles(tar_of(tmp_path / "a.tar", tarfile.TarInfo("twice"), tarfile.TarInfo("twice")))
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
        info = tarfile.TarInfo("link")
        info.type, info.linkname = kind, "/etc/passwd"
        with pytest.raises(PackError, match="'link' is not a regular file"):
            PackedFiles(tar_of(tmp_path / "a.tar", info))
    folder = tarfile.TarInfo("folder")
    folder.type = tarfile.DIRTYPE
    assert list(PackedFiles(tar_of(tmp_path / "a.tar", folder, tarfile.TarInfo("folder/a")))) == ["folder/a"]


def test_damaged_and_foreign_files(tmp_path):
    path = tar_of(tmp_path / "a.tar", tarfile.TarInfo("a"), tarfile.TarInfo("b"))
    whole = path.read_bytes()
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a"))
    for other in (tmp_path / "a.tar.gz", tmp_path / "gone.tar", tmp_path):
        with pytest.raises(PackError, match=r"cannot be read: .*; expected an uncompressed tar"):
            PackedFiles(other)
    path.write_bytes(whole[:1538])
    with pytest.raises(PackError, match=r"ends inside 'b': it is incomplete|cannot be read: unexpected end of data"):
        PackedFiles(path)
    path.write_bytes(whole[:100])
    with pytest.raises(PackError, match="cannot be read: "):
        PackedFiles(path)


@pytest.mark.parametrize(
    "members", ['[["a", -5, 4]]', '[["a", 512, 99999]]', '[["a", 512, -1]]', '[["a", 1.5, 2]]', '[["a", 512]]', "7"]
)
def test_an_index_that_lies_is_refused(tmp_path, members):
    path = tar_of(tmp_path / "a.tar", tarfile.TarInfo("a"))
    text = f'{{"version": 1, "archive_bytes": {path.stat().st_size}, "members": {members}}}'
    index_path(path).write_text(text, encoding="utf-8")
    with pytest.raises(PackError, match=r"index .*a\.tar\.json"):
        PackedFiles(path)


def test_an_index_of_another_archive_is_not_believed(tmp_path):
    path = tar_of(tmp_path / "a.tar", tarfile.TarInfo("a"))
    index_path(path).write_text(index_text({"x": Member(0, 4)}, path.stat().st_size + 1), encoding="utf-8")
    assert list(PackedFiles(path)) == ["a"]
    index_path(path).write_text("{", encoding="utf-8")
    with pytest.raises(PackError, match=r"index .*a\.tar\.json is damaged: .*; remove it, then the headers are read"):
        PackedFiles(path)


def test_an_archive_that_is_replaced_is_noticed(tmp_path):
    path = tar_of(tmp_path / "a.tar", tarfile.TarInfo("a"))
    packed = PackedFiles(path)
    tar_of(tmp_path / "b.tar", tarfile.TarInfo("b"), tarfile.TarInfo("a")).replace(path)
    with pytest.raises(PackError, match="was replaced since it was opened: open it again"):
        packed.read("a")
    path.unlink()
    with pytest.raises(PackError, match="cannot be read: No such file"):
        packed.read("a")
