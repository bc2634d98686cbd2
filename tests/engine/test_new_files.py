"""No file of other content is lost: neither to a run, nor to the run itself, nor to one beside it."""

import errno
import os
import random
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest

from segue.engine.files import NewFiles, check_writable, refuse_existing, sync, unfinished_files, whole_file, written_first


def texts(folder) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def write(new: NewFiles, path, content: str):
    return new.write(path, lambda part: part.write_text(content))


def test_every_content_is_kept_under_its_name_or_a_number(tmp_path, seed):
    """Random runs: what was there stays, what is written is there, and a content that is there already takes no second name."""
    rng = random.Random(seed)
    for _ in range(40):
        new, before, mine = NewFiles(), texts(tmp_path), {}
        for _ in range(rng.randint(1, 5)):
            name, content = rng.choice(("a.png", "b.png", "b-2.png")), rng.choice("uvwxyz")
            place = write(new, tmp_path / name, content)
            assert place.parent == tmp_path and place.suffix == ".png" and place.stem.startswith(name[0])
            assert place not in mine  # each of a run has a file of its own
            mine[place] = content
        after = texts(tmp_path)
        assert after.items() >= before.items()
        assert all(after[place.name] == content for place, content in mine.items())
        assert after.keys() - before.keys() <= {place.name for place in mine}


def test_the_same_run_again_changes_nothing(tmp_path):
    for _ in range(2):
        new = NewFiles()
        places = [write(new, tmp_path / "leaf.png", content) for content in ("first", "second", "first")]
        assert [place.name for place in places] == ["leaf.png", "leaf-2.png", "leaf-3.png"]
        assert new.numbered == places[1:]
        assert texts(tmp_path) == {"leaf.png": "first", "leaf-2.png": "second", "leaf-3.png": "first"}


def test_names_that_differ_in_case_are_one_name_in_a_run(tmp_path):
    """Some file systems take them for one."""
    new = NewFiles(replace=True)
    assert [write(new, tmp_path / name, name).name for name in ("Leaf.png", "leaf.png")] == ["Leaf.png", "leaf-2.png"]


def test_replacing_is_of_the_files_of_others_only(tmp_path):
    (tmp_path / "leaf.png").write_text("of another")
    new = NewFiles(replace=True)
    assert [write(new, tmp_path / "leaf.png", content).name for content in "ab"] == ["leaf.png", "leaf-2.png"]
    assert texts(tmp_path) == {"leaf.png": "a", "leaf-2.png": "b"}


def test_files_that_belong_together_share_a_number(tmp_path):
    (tmp_path / "sheet.json").write_text("of another")
    (tmp_path / "sheet-2.png").write_text("of another")
    for replace, number in ((False, "-3"), (True, "")):
        saves = {tmp_path / f"sheet.{kind}": lambda part, kind=kind: part.write_text(kind) for kind in ("png", "json")}
        places = NewFiles(replace).write_together(saves)
        assert [place.name for place in places] == [f"sheet{number}.png", f"sheet{number}.json"]


def test_two_runs_side_by_side_take_nothing_from_each_other(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        places = list(pool.map(lambda i: write(NewFiles(), tmp_path / "leaf.png", f"content {i}"), range(64)))
    assert len(set(places)) == 64
    assert sorted(texts(tmp_path).values()) == sorted(f"content {i}" for i in range(64))


def test_a_file_that_cannot_be_finished_leaves_all_as_it_was(tmp_path):
    kept = {"a.png": "of another", "a.png.part": "a download", ".a.png.probe": "a probe"}
    for name, content in kept.items():
        (tmp_path / name).write_text(content)

    def fail(part):
        part.write_text("half")
        raise RuntimeError

    after_another = {tmp_path / "c.png": lambda part: part.write_text("whole"), tmp_path / "a.png": fail}
    for saves in ({tmp_path / "a.png": fail}, after_another):
        with pytest.raises(RuntimeError):
            NewFiles(replace=True).write_together(saves)
    with pytest.raises(RuntimeError), whole_file(tmp_path / "a.png") as part:
        fail(part)
    check_writable(tmp_path / "a.png", folder=False)
    assert texts(tmp_path) == kept


def test_a_durable_file_is_on_the_disk_before_it_has_its_name_and_its_name_is_before_it_counts(tmp_path, monkeypatch):
    path, noted, fsync = tmp_path / "a.txt", [], os.fsync

    def note(descriptor):
        noted.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else f"file, {path.exists()}")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    with whole_file(path) as part:
        part.write_text("not durable")
    assert noted == []
    path.unlink()
    with whole_file(path, durable=True) as part:
        part.write_text("durable")
    assert noted == ["file, False", "folder"]
    path.unlink()
    assert written_first(path, "first") and noted == ["file, False", "folder"] * 2
    assert not written_first(path, "second") and path.read_text() == "first"


def test_a_file_system_that_syncs_no_folders_is_one_all_the_same(tmp_path, monkeypatch):
    (tmp_path / "a.txt").touch()

    def refuse(_):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refuse)
    sync(tmp_path)
    with pytest.raises(OSError, match="Invalid argument"):
        sync(tmp_path / "a.txt")


def test_files_that_are_being_written_are_told_from_those_of_others(tmp_path):
    for name in (".movie.part", "0123456789abcdef.part", ".0123456789abcdef.part.txt"):
        (tmp_path / name).touch()
    with whole_file(tmp_path / "a.txt") as part:
        part.touch()
        assert unfinished_files(tmp_path) == [part]
    assert unfinished_files(tmp_path) == []


def test_a_file_that_a_user_named_is_refused(tmp_path):
    refuse_existing(tmp_path / "a.png", tmp_path / "b.png")
    (tmp_path / "b.png").write_text("of another")
    with pytest.raises(OSError, match=r"b\.png is there already; choose another name, or write over it \(--force, force"):
        refuse_existing(tmp_path / "a.png", tmp_path / "b.png")
