"""The folder of a table: nothing it says is lost by a kill or a power cut, and nothing of the user's goes."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from segue.serving import batch_folder
from segue.serving.batch_folder import BatchFolder
from segue.serving.batch_requests import Failure, RowRequest
from segue.serving.batch_shards import Shard
from segue.serving.batch_table import Row

IDS = ("r0", "r1", "r2")


class Killed(BaseException):
    """In the place of a signal, which nothing handles either."""


def request(id, label=1):
    return RowRequest(id, label, "none", 7, 2)


def rows(*ids):
    return [Row(number, id, {}, {}) for number, id in enumerate(ids)]


def wanted(*ids):
    return {id: request(id) for id in ids}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(batch_folder, "parameters_text", lambda *_: "")
    return BatchFolder(tmp_path / "made")


def write(folder, *ids):
    """The pictures of rows, as after a kill before their shard's file."""
    record = SimpleNamespace(to_dict=dict)
    return [folder.write(request(id), Image.new("RGB", (3, 5), (10 * index, 0, 0)), record, ()) for index, id in enumerate(ids)]


def draw(folder, *ids):
    shard = Shard(tuple(request(id) for id in ids), frozenset(ids))
    folder.write_shard(shard, write(folder, *ids))


def names(path):
    return sorted(found.relative_to(path).as_posix() for found in path.rglob("*") if found.is_file())


def test_what_a_file_says_is_on_the_disk_before_it_says_so(folder, monkeypatch):
    """A power cut takes what was not synced: bytes of files, and names of folders."""
    synced, renamed, fsync, replace, unlink = set(), set(), os.fsync, Path.replace, Path.unlink
    said, removed = [], []

    def safe(path):
        return path.stat().st_ino in synced and path.parent not in renamed

    def noted_fsync(descriptor):
        synced.add(os.fstat(descriptor).st_ino)
        renamed.difference_update([path for path in renamed if path.stat().st_ino == os.fstat(descriptor).st_ino])
        fsync(descriptor)

    def noted_replace(path, target):
        if target.suffix == ".jsonl":
            assert path.stat().st_ino in synced
            said.extend(folder.out / json.loads(line)["file"] for line in path.read_text().splitlines())
            assert all(map(safe, said))
        replace(path, target)
        renamed.add(target.parent)

    def noted_unlink(path, **options):
        if path.parent == folder.shards and path.suffix == ".jsonl":
            assert safe(folder.out / "manifest.jsonl")
            removed.append(path)
        unlink(path, **options)

    with folder.begin():
        monkeypatch.setattr(os, "fsync", noted_fsync)
        monkeypatch.setattr(Path, "replace", noted_replace)
        monkeypatch.setattr(Path, "unlink", noted_unlink)
        draw(folder, *IDS)
        folder.finish(rows(*IDS), wanted(*IDS), [])
    assert len(said) == 2 * len(IDS) and len(removed) == 1


def test_a_start_that_is_killed_anywhere_is_gone_on_with(folder, monkeypatch):
    calls, killed = [], []
    for name in ("mkdir", "open"):
        original = getattr(Path, name)

        def killing(path, *arguments, original=original, **options):
            calls.append(path)
            if killed and len(calls) == killed[-1]:
                raise Killed
            return original(path, *arguments, **options)

        monkeypatch.setattr(Path, name, killing)
    folder.begin().close()
    count = len(calls)
    assert count >= 4  # three folders and the lock
    for at in range(1, count + 1):
        other = BatchFolder(folder.out.with_name(f"made{at}"))
        calls.clear()
        killed.append(at)
        with pytest.raises(Killed):
            other.begin()
        killed.clear()
        other.begin().close()


def test_folders_without_a_lock_that_a_start_left_are_gone_on_with(folder):
    for made in (folder.pictures, folder.shards):
        made.mkdir(parents=True)
    (folder.out / f".{'0123456789abcdef'}.part").touch()
    folder.begin().close()


def test_of_two_starts_at_once_one_is_told_that_the_other_draws(folder, monkeypatch):
    """The second comes after each call of the first that makes something."""
    mkdir, told = Path.mkdir, []

    def interrupted(path, *arguments, **options):
        mkdir(path, *arguments, **options)
        with monkeypatch.context() as patch:
            patch.setattr(Path, "mkdir", mkdir)
            try:
                BatchFolder(folder.out).begin().close()
            except ValueError as error:
                told.append(str(error))

    monkeypatch.setattr(Path, "mkdir", interrupted)
    folder.begin().close()
    assert told and set(told) == {f"another process is drawing into {folder.out}"}


@pytest.mark.parametrize("file", ("thesis.tex", "pictures/holiday.png", "shards/of-glass.txt", "manifest.jsonl", ".movie.part"))
def test_a_folder_of_the_users_stays_as_it_is(folder, file):
    (folder.out / file).parent.mkdir(parents=True)
    (folder.out / file).write_text("mine")
    with pytest.raises(ValueError, match="made holds something else already: it was not begun by segue batch"):
        folder.begin()
    assert names(folder.out) == [file]


def test_a_place_that_cannot_be_written_is_told_in_a_sentence(folder):
    folder.out.write_text("a file")
    with pytest.raises(OSError, match=r"cannot write to .*made: "):
        folder.begin()


def test_pictures_that_the_manifest_does_not_name_go_and_no_file_of_the_users(folder):
    """Two pictures of a shard that was killed; then one row of it fails, and the other is gone."""
    with folder.begin():
        draw(folder, "kept")
        write(folder, "fails", "gone")
        (folder.pictures / "torn.png").touch()  # of a row that fails, too: a power cut left its name alone
        copy = (folder.pictures / "gone.png").read_bytes()
        mine = {"gone-retouched.png": copy, "sheet.png": b"no picture", "notes.txt": b"text", "kept.jpg": b"of another kind"}
        for name, content in mine.items():
            (folder.pictures / name).write_bytes(content)
        Image.new("RGB", (3, 5)).save(folder.pictures / "plain.png")
        (folder.pictures / "folder.png").mkdir()
        folder.finish(rows("kept", "fails", "torn"), wanted("kept"), [Failure("fails", "so"), Failure("torn", "so")])
    assert names(folder.pictures) == sorted(("kept.png", "plain.png", *mine))
    assert (folder.pictures / "folder.png").is_dir()


def test_a_picture_that_shall_go_is_believed_by_nobody_whenever_that_is_killed(folder, monkeypatch):
    with folder.begin():
        draw(folder, *IDS)
        folder.finish(rows(*IDS), wanted(*IDS), [])

        def killing(*_):
            raise Killed

        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(Path, "replace", killing)
            folder.forget(["r1"])
        assert list(folder.drawn()) == ["r0", "r2"] and names(folder.pictures) == ["r0.png", "r2.png"]


def test_files_that_were_being_written_are_swept_from_every_folder(folder):
    folder.begin().close()
    parts = [place / ".0123456789abcdef.part" for place in (folder.out, folder.pictures, folder.shards)]
    mine = [place / ".movie.part" for place in (folder.out, folder.pictures)]
    for path in (*parts, *mine):
        path.touch()
    folder.begin().close()
    assert [path.exists() for path in (*parts, *mine)] == [False] * 3 + [True] * 2


@pytest.mark.parametrize("content", ("", '{"batch": ', "[3]", "\udcff"))
def test_a_record_that_cannot_be_read_is_named(folder, content):
    file = folder.out / "batch.json"
    with folder.begin():
        folder.claim({"batch": 3}, {"model": "leaves"})
        folder.claim({"batch": 3}, {"model": "in other words"})
        with pytest.raises(ValueError, match="made was begun with batch 3, and cannot go on with 4"):
            folder.claim({"batch": 4}, {"model": "leaves"})
        assert folder.begun() == {"batch": 3, "asked": {"model": "leaves"}}
        file.write_bytes(content.encode(errors="surrogateescape"))
        with pytest.raises(ValueError, match=r"made.batch\.json does not say any more what .*made was begun with"):
            folder.claim({"batch": 3}, {})
