"""What a visit leaves behind can be brought back."""

import pytest

from segue.bench.visit_folder import KEPT_HEAD, KEPT_TAIL, MAX_BYTES, MAX_FILES, complaints, read_state, shorten, write_state


def test_a_plain_small_folder_is_fine(tmp_path):
    for name in ("log.txt", "results.jsonl", "a/b/file-1_2"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert complaints(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a/b/c/file", "lies more than 2 folders down"),
        ("a b", "'a b' has a name"),
        ("é", "'\\xe9' has a name"),
        ("x:y/z", "x:y"),
    ],
)
def test_a_file_that_would_stay_behind_is_named(tmp_path, name, said):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
    (complaint,) = complaints(tmp_path)
    assert said in complaint


def test_links_large_files_and_too_many_are_named(tmp_path):
    (tmp_path / "log.txt").touch()
    (tmp_path / "link").symlink_to(tmp_path / "log.txt")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    assert complaints(tmp_path) == ["large has more than 16 MiB", "link is not a plain file"]
    for number in range(MAX_FILES - 2):
        (tmp_path / f"more-{number}").touch()
    assert complaints(tmp_path)[0] == f"{MAX_FILES + 1} files, more than 8"


def test_a_log_that_grew_too_long_keeps_its_beginning_and_its_end(tmp_path):
    log = tmp_path / "log.txt"
    log.write_bytes(b"first\n" + bytes(MAX_BYTES) + b"\nlast")
    shorten(log)
    text = log.read_bytes()
    assert text.startswith(b"first\n") and text.endswith(b"\nlast")
    assert len(text) < KEPT_HEAD + KEPT_TAIL + 100 < MAX_BYTES
    left_out = int(text.split(b"\n... ")[1].split(b" bytes")[0])
    assert left_out + KEPT_HEAD + KEPT_TAIL == MAX_BYTES + 11
    log.write_bytes(bytes(MAX_BYTES))
    shorten(log)
    assert log.stat().st_size == MAX_BYTES


def test_the_state_is_what_was_written(tmp_path):
    state = {"parts": {"a": {"status": "passed"}}, "calls": [{"commit": "abc"}], "table": {"triton": "3.6.0"}}
    write_state(tmp_path, state)
    assert read_state(tmp_path) == state
    assert [path.name for path in tmp_path.iterdir()] == ["visit.json"]
