"""Runs packed into two tables come back to the byte, and are drawn as their files are; what is damaged is left out."""

import gzip
import json
import os
import re
import tracemalloc

import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from made_runs import write_run
from test_fuzz import FUZZ, mutations, refused_or

import plotting
from fedmerge import files, locks, saving
from fedmerge.errors import InputError
from fedmerge.reporting import curves, results_csv, run_tables, runs
from fedmerge.reporting.packing import pack, unpack
from fedmerge.reporting.run_tables import COLUMNS, MANY, RECORDS, ROUNDS, WIDEST


@pytest.fixture
def folder(tmp_path):
    """Three runs: with all columns, with fewer, and one that was stopped before it had a CSV."""
    write_run(tmp_path / "m", [0.2, 0.4], seed=0)
    path = tmp_path / "m" / f"{write_run(tmp_path / 'm', [0.3, 0.5], seed=1)}_metrics.csv"
    fewer = pd.read_csv(path, dtype=str).drop(columns=["eval_seconds", "kept_share"])
    fewer.to_csv(path, index=False, lineterminator="\r\n")
    name = write_run(tmp_path / "m", [0.3, 0.5], seed=2, record={"finished": False, "é": [1e-7, 2**53 + 1]})
    (tmp_path / "m" / f"{name}_metrics.csv").unlink()
    return tmp_path / "m"


@pytest.fixture
def tables(folder, tmp_path):
    pack(folder, tmp_path / "t")
    return tmp_path / "t"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def rewrite(path, change):
    """Unpack a table, change its text, and pack it again."""
    path.write_bytes(gzip.compress(change(gzip.decompress(path.read_bytes()).decode()).encode()))


def test_what_is_packed_comes_back_to_the_byte(folder, tables, tmp_path):
    assert contents(tables).keys() == {ROUNDS, RECORDS}
    assert unpack(tables, tmp_path / "again") == 3
    assert contents(tmp_path / "again") == contents(folder)
    assert len(contents(folder)) == 5


def test_the_same_runs_give_the_same_bytes_at_any_time(folder, tables, tmp_path, monkeypatch):
    monkeypatch.setattr("time.time", lambda: 1e9)
    pack(folder, tmp_path / "later")
    assert contents(tmp_path / "later") == contents(tables)


def test_tables_are_read_without_the_program(tables):
    rounds = pd.read_csv(tables / ROUNDS)
    assert rounds.columns[:2].tolist() == ["run", "epoch"]
    assert rounds.groupby("run").test_accs.last().tolist() == [0.4, 0.5]
    assert rounds.kept_share.isna().tolist() == [False, False, True, True]
    records = pd.read_json(tables / RECORDS, lines=True).set_index("run")
    assert [settings["seed"] for settings in records.settings] == [0, 1, 2]
    assert records.finished.tolist() == [True, True, False]


@pytest.mark.slow
def test_tables_are_drawn_as_their_files_are(folder, tables, tmp_path, capsys):
    left = {}
    for source in (folder, tables):
        out = tmp_path / f"{source.name}-out"
        assert plotting.main(["--csv_dir", str(source), "--output_dir", str(out), "--at", "1", "--unfinished"]) == 0
        said = capsys.readouterr().out.replace(str(out), "OUT")
        left[source] = said, {n: c for n, c in contents(out).items() if not n.endswith(".pdf")}  # these have a date
    assert left[folder] == left[tables]
    assert {"DIGITS_iid_comparison.png", "DIGITS_summary.md", "DIGITS_summary.csv"} <= left[tables][1].keys()


def test_what_did_not_finish_is_named_as_if_the_table_were_a_folder(tables, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(curves, "save", lambda figure, *_: curves.plt.close(figure))
    assert plotting.main(["--csv_dir", str(tables), "--output_dir", str(tmp_path / "out")]) == 0
    path = tables / RECORDS / "fedavg_DIGITS_iid_2_n_epochs=2.json"
    assert capsys.readouterr().err == f"warning: {path}: stopped after round 0 of 2, left out\n"


def test_results_are_made_again_from_tables_too(tmp_path):
    figures = {"accuracy": 0.4, "f1": 0.1}
    for seed in (0, 1):
        write_run(tmp_path / "m", [0.4], seed=seed, record={"final": figures})
    pack(tmp_path / "m", tmp_path / "t")
    for source in "mt":
        assert results_csv.rebuild_results(tmp_path / source, tmp_path / f"{source}.csv") == 2
    assert (tmp_path / "m.csv").read_bytes() == (tmp_path / "t.csv").read_bytes()


def test_the_command_line_packs_and_unpacks(folder, tmp_path, capsys):
    assert plotting.program(["--csv_dir", str(folder), "--pack", str(tmp_path / "t")]) == 0
    assert plotting.program(["--csv_dir", str(tmp_path / "t"), "--unpack", str(tmp_path / "again")]) == 0
    assert contents(tmp_path / "again") == contents(folder)
    assert capsys.readouterr().out.count("3 runs of") == 2
    assert plotting.program(["--csv_dir", str(folder), "--pack", str(tmp_path / "t")]) == 2
    assert plotting.program(["--csv_dir", str(tmp_path / "t"), "--unpack", str(tmp_path / "again")]) == 2
    assert plotting.program(["--csv_dir", str(tmp_path / "none"), "--pack", str(tmp_path / "u")]) == 2
    said = capsys.readouterr().err.splitlines()
    assert [line.rsplit(": ", 1)[1] for line in said] == ["is there already"] * 2 + ["there is no such folder"]


def no_json(folder, name):
    (folder / f"{name}.json").unlink()


def other_name(folder, name):
    (folder / f"{name}.json").rename(folder / "other.json")
    (folder / f"{name}_metrics.csv").rename(folder / "other_metrics.csv")


def edited_json(folder, name):
    path = folder / f"{name}.json"
    path.write_text(json.dumps(json.loads(path.read_text())))


def f1_of_two(folder, name):
    saving.write_json(folder / f"{name}.json", saving.read_json(folder / f"{name}.json") | {"final": {"f1": 2}})


def of_csv(changed):
    def apply(folder, name):
        path = folder / f"{name}_metrics.csv"
        path.write_bytes(changed(path.read_bytes()))

    return apply


UNPACKABLE = {
    "there is no fedavg": no_json,
    "of a run of another name": other_name,
    "it is not as a run writes it": edited_json,
    "not JSON": lambda folder, name: (folder / f"{name}.json").write_text('{"run": NaN}'),
    "csv is not as a run writes it": of_csv(lambda content: content.replace(b"\r\n", b"\n")),
    "metrics.csv is not as": of_csv(lambda content: content.replace(b"epoch", b"run")),
    "_metrics.csv is not": of_csv(lambda content: content.replace(b"train_losses", b"train_accs")),
    "1e999 is no number of JSON": lambda folder, name: (folder / f"{name}.json").write_text('{"run": 1e999}'),
    "has no F1": f1_of_two,
    "is not as a run writes": of_csv(lambda content: content.replace(b"0.2", b'"0\n2"')),
    "is not as a": of_csv(lambda content: content + b"3,4\r\n"),
    "_metrics.csv is": of_csv(lambda content: b""),
}


@pytest.mark.parametrize("said", UNPACKABLE)
def test_what_would_not_come_back_is_not_packed(tmp_path, said):
    UNPACKABLE[said](tmp_path / "m", write_run(tmp_path / "m", [0.2]))
    write_run(tmp_path / "m", [0.3], seed=5)
    with pytest.raises(InputError, match=said) as caught:
        pack(tmp_path / "m", tmp_path / "t")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "t").exists()


def test_a_run_that_goes_on_is_not_packed(folder, tmp_path):
    lock = folder / ".fedavg_DIGITS_iid_2_n_epochs=2.lock"
    with locks.exclusively(lock), pytest.raises(InputError, match="still goes on"):
        pack(folder, tmp_path / "t")
    assert pack(folder, tmp_path / "t") == 3


def test_tables_do_not_lie_beside_files_of_runs(folder, tables):
    with pytest.raises(InputError, match=r"json: is there already"):
        pack(folder, folder)
    write_run(tables, [0.4])
    with pytest.raises(InputError, match=r"beside the tables rounds\.csv\.gz and records\.jsonl\.gz: move it"):
        runs.load_runs(tables)


def test_more_than_is_read_is_not_packed(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "TABLE", 1000)
    with pytest.raises(InputError, match="more than the 1000 that are read"):
        pack(folder, tmp_path / "t")
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize("table", [ROUNDS, RECORDS])
def test_a_table_that_cannot_be_read_is_refused_in_one_line(tables, table, capsys):
    path = tables / table
    whole = path.read_bytes()

    def said():
        assert plotting.program(["--csv_dir", str(tables)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert table in line
        return line

    path.write_bytes(whole[:-9])
    assert "cannot be read" in said()
    path.write_bytes(whole[:40] + bytes(8) + whole[48:])
    assert "cannot be read" in said()
    path.write_bytes(gzip.compress(b"run\n\xff"))
    assert "cannot be read" in said()
    path.write_bytes(gzip.compress(bytes(files.TABLE + 1)))
    assert f"unpacks to more than the {files.TABLE} bytes" in said()
    with open(path, "wb") as file:
        file.truncate(files.TABLE + 1)
    assert "bytes, more than the" in said()
    path.unlink()
    assert "is missing" in said()
    os.mkfifo(path)
    assert "is not a regular file" in said()


def test_columns_that_are_none_are_refused(tables):
    for header in ("epoch,run", "run,epoch,epoch", ""):
        rewrite(tables / ROUNDS, lambda text, header=header: header + text[text.index("\r\n") :])
        with pytest.raises(InputError, match="do not begin with `run`, or one is there twice"):
            runs.load_runs(tables)


FIRST = "fedavg_DIGITS_iid_0_n_epochs=2"
DAMAGE = {  # what is said: the table, the damage, and the seeds of the runs that are still read
    "not JSON": (RECORDS, lambda text: text.replace('"settings"', "settings", 1), [1, 2]),
    "not tell the name of its run": (RECORDS, lambda text: text.replace(FIRST, f"../{FIRST}", 1), [1, 2]),
    "it is a second record of": (RECORDS, lambda text: text + text.splitlines()[1] + "\n", [0, 1, 2]),
    "it is no JSON object": (RECORDS, lambda text: text + "[]\n", [0, 1, 2]),
    "are not columns of": (RECORDS, lambda text: text.replace(f'{COLUMNS}":["epoch"', f'{COLUMNS}":["x"'), [0, 2]),
    "has 1 of the 2 rounds": (ROUNDS, lambda text: text.replace(f"{FIRST},2", "\r\n,,", 1), [1, 2]),
    "has a damaged row of it": (ROUNDS, lambda text: text.replace(f"{FIRST},2", f'{FIRST},"2', 1), [1, 2]),
    "gz has a damaged row": (ROUNDS, lambda text: text.replace(f"{FIRST},2", f"{FIRST},,2", 1), [1, 2]),
    "has an impossible test_accs": (ROUNDS, lambda text: text.replace("1,0.2,0.2,0.2", "1,0.2,0.2,7", 1), [1, 2]),
    "it has rounds, but no record": (ROUNDS, lambda text: text + "nobody,1\r\n\x1b[2J,2\r\n", [0, 1, 2]),
}


@pytest.mark.parametrize("fault", DAMAGE)
def test_a_damaged_line_stops_only_its_own_run(tables, tmp_path, capsys, fault):
    table, change, rest = DAMAGE[fault]
    rewrite(tables / table, change)
    found, foreign = runs.load_runs(tables)
    assert [run.settings["seed"] for run in found] == rest
    assert any(fault in text for text in foreign.values())
    assert all(f"{path}{text}".isprintable() for path, text in foreign.items())
    results_csv.rebuild_results(tables, tmp_path / "results.csv")
    assert capsys.readouterr().err.count("left out") >= (table == RECORDS and fault != "are not columns of")


def test_damaged_tables_are_not_unpacked(tables, tmp_path):
    rewrite(tables / ROUNDS, lambda text: text + "nobody,1\r\n")
    with pytest.raises(InputError, match="it has rounds, but no record"):
        unpack(tables, tmp_path / "again")
    with pytest.raises(InputError, match=r"there is no rounds\.csv\.gz"):
        unpack(tmp_path, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_tables_are_not_unpacked_into_their_own_folder(tables):
    before = contents(tables)
    with pytest.raises(InputError, match=r"rounds\.csv\.gz: is there already"):
        unpack(tables, tables)
    assert contents(tables) == before


NOT_UNPACKED = {
    "are not columns of rounds.csv.gz, each once": lambda text: re.sub(f'{COLUMNS}":\\[[^]]+', f'{COLUMNS}":[', text),
    "columns of rounds.csv.gz, each once": lambda text: text.replace(f'{COLUMNS}":[', f'{COLUMNS}":["epoch",'),
    "`csv_columns` are not columns": lambda text: text.replace(f'{COLUMNS}":[', f'{COLUMNS}":[[1],'),
    "`csv_columns` are": lambda text: re.sub(f'{COLUMNS}":\\[[^]]+\\]', f'{COLUMNS}":null', text),
    "is no plain value": lambda text: text.replace('"lr":0.01', '"lr":[0.01]'),
    "1e999 is no number of JSON": lambda text: text.replace('"lr":0.01', '"lr":1e999'),
}


@pytest.mark.parametrize("said", NOT_UNPACKED)
def test_runs_that_would_not_be_drawn_are_not_unpacked(tables, tmp_path, said):
    rewrite(tables / RECORDS, NOT_UNPACKED[said])
    with pytest.raises(InputError, match=re.escape(said)) as caught:
        unpack(tables, tmp_path / "again")
    assert str(caught.value).startswith(str(tables / RECORDS))
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("table", [ROUNDS, RECORDS])
def test_a_table_of_empty_lines_is_refused_before_they_take_memory(tables, table, monkeypatch):
    monkeypatch.setattr(files, "TABLE", 2**23)
    (tables / table).write_bytes(gzip.compress(b"run\n" + b"\n" * (files.TABLE - 4)))
    tracemalloc.start()
    with pytest.raises(InputError, match=f"{table}: has more than the {run_tables.LINES} lines"):
        runs.load_runs(tables)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * files.TABLE  # a list of them has 8 bytes a line


def test_a_record_and_a_table_are_no_larger_than_records_and_tables_are(tables, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(run_tables, "RECORD", 100)
        assert "more than the 100 characters" in next(iter(runs.load_runs(tables)[1].values()))
    rewrite(tables / ROUNDS, lambda text: text.replace("run,", f"run,{','.join(map(str, range(WIDEST)))},", 1))
    with pytest.raises(InputError, match=r"rounds\.csv\.gz: has more than the 1000 columns"):
        runs.load_runs(tables)


class Counted(list):
    """A list that counts how often it is gone through."""

    passes = 0

    def _counted(name):
        def method(self, *args):
            self.passes += 1
            return getattr(list, name)(self, *args)

        return method

    __iter__, __contains__, index, count, __getitem__ = map(
        _counted, ("__iter__", "__contains__", "index", "count", "__getitem__")
    )


def test_many_columns_are_gone_through_no_more_often_than_few(tables):
    """A search for each of 200,000 columns takes minutes."""
    passes = []
    for names in ([f"a{i}" for i in range(5)], [f"b{i}" for i in range(500)]):
        added = ["," + ",".join(names), "," * len(names)]
        rewrite(
            tables / ROUNDS,
            lambda text, added=added: "".join(line + added[n > 0] + "\r\n" for n, line in enumerate(text.splitlines())),
        )
        source = run_tables.runs_of(tables)
        source.header = Counted(source.header)
        assert len(source.rounds(source.names[0])) > len(names)
        passes.append(source.header.passes)
    assert passes[0] == passes[1] > 0


def test_a_csv_as_wide_as_no_run_has_one_stops_only_its_own_run(folder):
    path = next(folder.glob("*_0_*.csv"))
    path.write_text(re.sub("$", "," * WIDEST, path.read_text(), flags=re.MULTILINE))
    found, foreign = runs.load_runs(folder)
    assert len(found) == 2
    assert "more than the 1000 columns" in next(iter(foreign.values()))


def test_lines_that_are_no_records_end_it_at_some_point(tables):
    rewrite(tables / RECORDS, lambda text: text + "\n" * MANY)
    assert len(runs.load_runs(tables)[1]) == MANY
    rewrite(tables / RECORDS, lambda text: text + "\n")
    with pytest.raises(InputError, match=f"more than {MANY} lines of the tables are no records"):
        runs.load_runs(tables)


@pytest.mark.parametrize("name", ["a/b", "", ".a", "a\0", "a\n", "\ud800", "a" * 241, "é" * 121, 3, None, "..", "a\\b"])
def test_what_is_no_name_of_a_file_is_no_name_of_a_run(name):
    assert not run_tables.is_name(name)
    assert run_tables.is_name("é=a, b" + "a" * 200)


ROWS = b'run,epoch,x\r\na,1,0.5\r\n"b",1,"2"\r\n'
LINES = b'{"run":"a","finished":false,"failed":null,"settings":{}}\n{"run":"b","csv_columns":["x"]}\n'


@given(st.binary(max_size=60) | mutations(ROWS), st.binary(max_size=60) | mutations(LINES))
@example(ROWS + b'"', LINES)
@FUZZ
def test_any_tables(tmp_path, rows, lines):
    (tmp_path / ROUNDS).write_bytes(gzip.compress(rows))
    (tmp_path / RECORDS).write_bytes(gzip.compress(lines))
    if refused_or(lambda: runs.load_runs(tmp_path)):
        source = run_tables.runs_of(tmp_path)
        for name in source.names:
            refused_or(lambda name=name: source.rounds(name))
            assert run_tables.is_name(name)


@given(st.binary(max_size=200) | mutations(gzip.compress(LINES)))
@FUZZ
def test_any_bytes_for_a_table(tmp_path, content):
    (tmp_path / ROUNDS).write_bytes(gzip.compress(ROWS))
    (tmp_path / RECORDS).write_bytes(content)
    refused_or(lambda: runs.load_runs(tmp_path))
