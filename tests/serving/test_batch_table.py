"""Tables: the same rows from every format, and one sentence for a table that cannot be read as a whole."""

import csv
import json
import sys

import pytest

from segue.serving.batch_table import read_table

ROWS = [{"label": 3, "seed": 7, "guidance": "cfg:scale=2"}, {"label": 0, "seed": None, "guidance": None}]


def write(folder, kind, rows):
    """``rows`` as a table of a format, with every column of the first."""
    path = folder / f"rows.{kind}"
    if kind == "csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([list(rows[0]), *(row.values() for row in rows)])
    elif kind == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(f"{json.dumps(row)}\n\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ("csv", "jsonl", "ndjson", "parquet"))
def test_every_format_gives_the_same_rows(tmp_path, kind):
    first, second = read_table(write(tmp_path, kind, ROWS))
    assert {name: str(value) for name, value in first.values.items()} == {"label": "3", "seed": "7", "guidance": "cfg:scale=2"}
    assert {name: str(value) for name, value in second.values.items()} == {"label": "0"}  # empty cells say nothing
    assert [(row.number, row.id, row.others) for row in (first, second)] == [(0, "000000", {}), (1, "000001", {})]


@pytest.mark.parametrize("kind", ("csv", "jsonl", "parquet"))
def test_columns_that_are_unknown_pass_through_where_they_are_to(tmp_path, kind):
    path = write(tmp_path, kind, [{"id": "a.b", "prompt": 'a "cat", red', "source": "page 3"}])
    (row,) = read_table(path, pass_through=True)
    assert (row.id, row.values, row.others) == ("a.b", {"prompt": 'a "cat", red'}, {"source": "page 3"})
    with pytest.raises(ValueError, match="unknown column 'source'; known: id, label, prompt"):
        read_table(path)


def test_text_keeps_its_lines(tmp_path):
    prompt = "two lines:\none and \u2028 another"
    for kind in ("csv", "jsonl"):
        assert read_table(write(tmp_path, kind, [{"prompt": prompt}]))[0].values == {"prompt": prompt}


@pytest.mark.parametrize(
    ("name", "text", "words"),
    (
        ("rows.txt", "label\n1\n", "a table is one of .csv, .jsonl, .ndjson, .parquet, got"),
        ("rows.csv", "", "neither a column label nor prompt; it has none"),
        ("rows.csv", "label\n", "has no rows"),
        ("rows.csv", "seed\n1\n", "neither a column label nor prompt; it has seed"),
        ("rows.csv", "label,label\n1,2\n", "has the column 'label' twice"),
        ("rows.csv", "label,seed\n1,2\n1\n", "row 1 of .* has 1 cells, and its header 2"),
        ("rows.csv", "label,num_inference_steps\n1,2\n", "unknown column 'num_inference_steps'; it is called steps here"),
        ("rows.csv", "label,sede\n1,2\n", "unknown column 'sede'; did you mean 'seed'?"),
        ("rows.csv", "id,label\na,1\nA,2\n", "has the id 'A' twice, in rows 0 and 1"),
        ("rows.csv", "id,label\na,1\n,2\n", "row 1 of .* has nothing"),
        ("rows.csv", "id,label\n../a,1\n", "row 0 of .* has '../a'"),
        ("rows.csv", "id,label\n.a,1\n", "row 0 of .* has '.a'"),
        ("rows.jsonl", '{"label": 1}\n{"label": \n', "line 2 of .* is not valid JSON"),
        ("rows.jsonl", "[1]\n", "line 1 of .* is no JSON object"),
        ("rows.jsonl", '{"label": 1, "id": true}\n', "row 0 of .* has True"),
    ),
)
def test_what_no_table_is_gets_a_sentence(tmp_path, name, text, words):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=words):
        read_table(path)


@pytest.mark.parametrize("name", ("rows.csv", "rows.jsonl", "rows.parquet"))
def test_bytes_that_are_no_table_get_a_sentence(tmp_path, name):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    path = tmp_path / name
    path.write_bytes(b"label\n\xff\xfe\xfa\n")
    with pytest.raises(ValueError, match=f"{name} is no "):
        read_table(path)
    with pytest.raises(FileNotFoundError):
        read_table(tmp_path / f"gone-{name}")


def test_without_the_library_that_reads_it_a_table_is_refused_with_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"rows.parquet needs pyarrow: pip install 'segue\[ray\]'"):
        read_table(tmp_path / "rows.parquet")
