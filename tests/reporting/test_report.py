"""report.py: what its page holds, and the page in a browser."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
from conftest import ROOT
from made_runs import change, loaded, write_run

import report as program
from fedmerge import locks
from fedmerge.errors import InputError
from fedmerge.reporting import curves, report
from fedmerge.reporting import series as grouping

EVIL = '</script><img src="https://example.org/x" onerror="alert(1)">'


@pytest.fixture
def folder(tmp_path):
    """FedAvg of two seeds, LaS-FL of one, and a run that stopped after two of four rounds."""
    metrics = tmp_path / "metrics"
    traffic = [{"client": n, "rounds": 2, "bytes_up": 1000 * n, "bytes_down": 3000} for n in (1, 0)]
    for seed in (0, 1):
        record = {"partition": {"histograms": [[3, 0], [1, 7]], "sha256": "ab"}, "traffic": traffic}
        write_run(metrics, [0.2, 0.4 + 0.2 * seed], seed=seed, record=record)
    write_run(metrics, [0.1, 0.3], algorithm="las")
    stopped = write_run(metrics, [0.5, 0.6, 0.6, 0.6], lr=0.5)
    change(metrics, stopped, finished=False)
    rounds = metrics / f"{stopped}_metrics.csv"
    rounds.write_bytes(b"".join(rounds.read_bytes().splitlines(keepends=True)[:3]))
    return metrics


def content_in(page):
    return json.loads(re.search(r'<script type="application/json" id="content">(.*?)</script>', page, re.S)[1])


def test_its_figures_are_those_of_plotting(folder):
    content = report.content_of(folder)
    found = grouping.group_series(loaded(folder), unfinished=True)
    assert [method["label"] for method in content["methods"]] == [series.label for series in found]
    for method, series in zip(content["methods"], found, strict=True):
        line, frame = method["lines"]["test_accs"], curves.over_seeds(series.runs, "test_accs").reset_index()
        assert ("low" in line) == (len(series.runs) > 1)
        for name in ("value", "low", "high")[: len(line) - 1]:
            assert line[name] == pytest.approx(frame[name].tolist(), rel=1e-4)
        for name in report.AXES:
            x = [method["x"][name][place] for place in line["at"]]
            assert x == pytest.approx(frame[name].tolist(), rel=1e-4)
    row = content["methods"][0]["row"]
    assert row["test acc. %, last round"] == "50.00 ± 14.14"
    assert (row["MB up/round"], row["MB down/round"]) == ("4.00", "12.0")


def test_what_it_tells_of_a_run_by_hand(folder):
    content = report.content_of(folder)
    run = next(run for run in content["runs"] if run["seed"] == 1)
    assert (run["state"], run["round"], run["rounds"], run["accuracy"]) == ("finished", 2, 2, 60.0)
    assert (run["up"], run["both"], run["seconds"]) == (8.0, 32.0, 4.0)
    assert run["traffic"] == [[0, 0.0, 0.003], [1, 0.001, 0.003]]
    split = {"title": "DIGITS, IID", "counts": [[3, 0], [1, 7]], "clients": 2, "classes": 2}
    assert content["splits"][run["histogram"]] == split
    assert run["settings"]["algorithm"] == "fedavg"
    assert "sparsity" not in run["settings"]  # it has no effect
    assert content["methods"][0]["x"]["seconds"] == [2.0, 4.0]
    assert content["methods"][0]["x"]["both"] == [16.0, 32.0]
    assert {run["state"] for run in content["runs"]} == {"finished", "stopped"}


def test_lines_look_as_in_the_figures():
    looks = [report.look_of(place) for place in range(60)]
    assert len({(look["colour"], look["dash"]) for look in looks}) == 60
    assert [look["colour"] for look in looks[:10]] == curves.COLOURS
    assert len(report.SYMBOLS) == len(curves.MARKERS)
    assert len(report.DASHES) == len(curves.LINES)


def test_the_lines_of_a_list_are_told_with_the_end_of_those_that_run(folder, tmp_path):
    stopped = next(run["run"] for run in report.content_of(folder)["runs"] if run["state"] == "stopped")
    (tmp_path / "list.txt").write_text(
        "--seed 0 --n_epochs 2\n--lr 0.5 --n_epochs 4\n--seed 5 --n_epochs 2\n--lr none\n"
    )
    with locks.exclusively(folder / f".{stopped}.lock", stopped):
        content = report.content_of(folder, tmp_path / "list.txt", ["--metrics_dir", str(folder)])
    done, running, absent, wrong = content["lines"]
    assert done["state"] == "done"
    assert running["state"] == "running, after round 2 of 4"
    assert 0 <= running["end"] - time.time() <= 7
    assert (absent["state"], absent["end"]) == ("not started", None)
    assert wrong["state"].startswith("failed: ")
    assert next(run["left"] for run in content["runs"] if run["state"] == "running") == 6.0


def test_nothing_in_a_record_becomes_part_of_the_page(folder):
    name = next(run["run"] for run in report.content_of(folder)["runs"] if run["state"] == "stopped")
    change(folder, name, failed=EVIL, settings={"lr": EVIL})
    page = report.page_of(report.content_of(folder))
    assert EVIL in {run["why"] for run in content_in(page)["runs"]}
    assert "<img" not in page.split('id="content">')[1]


def test_a_page_needs_nothing_from_elsewhere(folder):
    page = report.page_of(report.content_of(folder), again=5)
    own = report.read("page.html") + report.read("page.css") + report.read("page.js")
    assert not re.search(r"https?:|src=|@import|url\(|fetch\(|<link rel=\"style", own)
    assert "default-src 'none'" in page
    assert not re.search(r"/\*(style|script|plotly|content)\*/", page)
    assert content_in(page)["again"] == 5


def test_split_and_clients_are_cut_where_nobody_could_see_them(folder, monkeypatch):
    monkeypatch.setattr(report, "MOST", 1)
    content = report.content_of(folder)
    cut = {"title": "DIGITS, IID", "counts": [[3]], "clients": 2, "classes": 2}
    assert list(content["splits"].values()) == [cut]
    run = next(run for run in content["runs"] if run["traffic"])
    assert (run["traffic"], run["took_part"]) == ([[1, 0.001, 0.003]], 2)  # the busiest


def test_splits_of_two_datasets_are_two_though_the_same_places_are_held(tmp_path):
    for dataset, counts in (("DIGITSA", [[3, 0]]), ("DIGITSB", [[0, 3]])):
        write_run(tmp_path, [0.5], dataset=dataset, record={"partition": {"histograms": counts, "sha256": "ab"}})
    content = report.content_of(tmp_path)
    assert [content["splits"][run["histogram"]]["counts"] for run in content["runs"]] == [[[3, 0]], [[0, 3]]]


def test_levels_of_one_title_are_told_apart(tmp_path):
    write_run(tmp_path, [0.5])
    name = write_run(tmp_path, [0.5], lr=0.5)
    change(tmp_path, name, partition={"name": "mine", "title": "IID"})
    splits = {run["split"] for run in report.content_of(tmp_path)["runs"]}
    assert len(splits) == 2


def test_a_method_tells_whether_first_downloads_count(folder):
    write_run(folder, [0.5, 0.5], algorithm="stc", shared_init=False)
    write_run(folder, [0.5, 0.5], algorithm="centralised", n_clients=1, participation=1.0)
    shared = {method["label"].split()[0]: method["shared"] for method in report.content_of(folder)["methods"]}
    assert shared == {"FedAvg": True, "LaS-FL": True, "STC": False, "centralised": None}


def test_long_curves_are_thinned_and_keep_their_end(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "POINTS", 4)
    for n in (4, 5, 9, 10):
        folder = tmp_path / str(n)
        write_run(folder, [i / 10 for i in range(n)])
        (method,) = report.content_of(folder)["methods"]
        epochs = [method["x"]["epoch"][place] for place in method["lines"]["test_accs"]["at"]]
        assert (epochs[0], epochs[-1]) == (1, n)
        assert len(epochs) <= 5
        assert method["lines"]["test_accs"]["value"] == [10.0 * (epoch - 1) for epoch in epochs]


def test_a_page_replaces_nothing_but_a_page(folder, tmp_path, capsys):
    (tmp_path / "list.txt").write_text("--seed 0\n")
    words = ["--csv_dir", str(folder), "--experiments", str(tmp_path / "list.txt"), "--output"]
    assert program.program([*words, str(tmp_path / "list.txt")]) == 2
    assert "is there already, and is no page" in capsys.readouterr().err
    assert (tmp_path / "list.txt").read_text() == "--seed 0\n"
    for _ in range(2):
        assert program.program([*words, str(tmp_path / "r.html")]) == 0


def test_a_list_may_be_watched_before_its_first_run(tmp_path):
    (tmp_path / "list.txt").write_text("--seed 0\n")
    content = report.content_of(tmp_path / "metrics", tmp_path / "list.txt", ["--out", str(tmp_path)])
    assert (content["runs"], content["lines"][0]["state"]) == ([], "not started")
    assert "not started" in report.page_of(content)


def test_what_is_no_run_is_said(folder):
    (folder / "odd.json").write_text("{}")
    assert any("odd.json: left out: it does not say" in note for note in report.content_of(folder)["notes"])


def test_the_tables_of_a_study_are_read_too(tmp_path):
    content = report.content_of(ROOT / "results" / "lss_digits")
    assert len(content["runs"]) > 10
    assert all(run["histogram"] in content["splits"] for run in content["runs"])


def test_mistakes_are_one_line(folder, tmp_path, capsys, monkeypatch):
    assert program.program(["--csv_dir", str(tmp_path / "none")]) == 2
    assert "is no folder" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert program.program(["--csv_dir", str(tmp_path / "empty")]) == 2
    assert "run fedalg.py first" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    assert program.program(["--csv_dir", str(folder), "--output", str(tmp_path / "r.html")]) == 2
    assert capsys.readouterr().err.strip() == "report.py: error: a report needs the package plotly: pip install plotly"
    assert not (tmp_path / "r.html").exists()
    with pytest.raises(InputError):
        report.content_of(folder, tmp_path / "no-list.txt")


@pytest.mark.slow
def test_a_page_that_is_watched_is_made_again_until_it_is_interrupted(folder, tmp_path):
    page = tmp_path / "r.html"
    words = [sys.executable, ROOT / "report.py", "--csv_dir", folder, "--output", page, "--watch", "0.2"]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # tests in the background ignore it
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, preexec_fn=heard)
    assert "4 runs, made again every 0.2 s" in process.stdout.readline()
    assert content_in(page.read_text())["again"] == 0.2
    write_run(folder, [0.1, 0.9], seed=9)
    deadline = time.monotonic() + 60
    while len(content_in(page.read_text())["runs"]) < 5 and time.monotonic() < deadline:
        time.sleep(0.1)
    write_run(folder, [0.1, 0.9], seed=10)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    content = content_in(page.read_text())
    assert (len(content["runs"]), content["again"]) == (6, None)


# ---- in a browser


def browser_at():
    return next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )


@pytest.fixture
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    if browser_at() is None:
        pytest.skip("needs a Chromium")
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=browser_at(), args=["--no-sandbox"])
        yield launched
        launched.close()


def opened(browser, path, said, width=1200, dark=False, address=""):
    """Return the page in a window; what it complains of goes into the list `said`, and so does all it asks for."""
    window = browser.new_page(viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light")
    window.on("console", lambda message: said.append(message.text))
    window.on("pageerror", lambda error: said.append(str(error)))
    window.on("request", lambda request: said.append(request.url) if request.url.startswith("http") else None)
    window.goto(f"file://{path}{address}")
    window.wait_for_selector("#curves .xtitle")
    return window


@pytest.mark.slow
def test_the_page_in_a_browser(folder, tmp_path, browser):
    path, said = tmp_path / "r.html", []
    (tmp_path / "list.txt").write_text("--seed 0 --n_epochs 2\n")
    assert (
        program.program(["--csv_dir", str(folder), "--output", str(path), "--experiments", str(tmp_path / "list.txt")])
        == 0
    )
    window = opened(browser, path, said)
    assert window.inner_text("#count") == "4 of 4 runs, 3 methods"
    window.fill("#words", "algorithm=las")
    window.locator("#count", has_text="1 of 4 runs, 1 methods").wait_for()
    assert "LaS-FL" in window.inner_text("#runs tbody")
    window.click("#all")
    window.select_option("#state", "stopped")
    assert window.inner_text("#count") == "1 of 4 runs, 1 methods"
    window.click("#all")

    assert window.text_content("#curves .xtitle") == "round"
    window.select_option("#x", "both")
    window.locator("#curves .xtitle", has_text="MB, up + down").wait_for()

    window.focus("#runs th button[data-sort='seed']")  # by the keyboard alone
    for order, first in (("descending", "1"), ("ascending", "0")):
        window.keyboard.press("Enter")
        heading = window.locator("#runs th", has_text="seed")
        assert heading.get_attribute("aria-sort") == order
        column = window.locator("#runs thead th").all_inner_texts().index(heading.inner_text())
        assert window.locator("#runs tbody tr").first.locator("td").nth(column).inner_text() == first

    window.check("#differ")
    assert "lr" in window.locator("#runs thead th").all_inner_texts()
    button = window.locator("#legend button").first
    button.click()
    assert window.locator("#legend button").first.get_attribute("aria-pressed") == "false"
    window.locator("#runs td button").last.click()
    assert window.locator("#facts caption").all_inner_texts()[0] == "settings"

    window.reload()  # all of it is in the address
    window.wait_for_selector("#curves .xtitle")
    assert window.text_content("#curves .xtitle") == "MB, up + down"
    assert window.is_checked("#differ")
    assert window.locator("#legend button").first.get_attribute("aria-pressed") == "false"
    window.evaluate("location.hash = '#x=up&words=algorithm%3Dlas'")  # a link, in the same window
    window.locator("#count", has_text="1 of 4 runs").wait_for()
    assert window.input_value("#x") == "up"
    assert window.inner_text("#lines tbody").startswith("1\tnot started")
    assert said == []


@pytest.mark.slow
def test_the_page_on_a_phone_and_in_the_dark(folder, tmp_path, browser):
    path, said = tmp_path / "r.html", []
    program.program(["--csv_dir", str(folder), "--output", str(path)])
    light, dark = (opened(browser, path, said, width=390, dark=dark) for dark in (False, True))
    for window in (light, dark):
        assert window.evaluate("document.documentElement.scrollWidth") == 390
    papers = [window.evaluate("getComputedStyle(document.body).backgroundColor") for window in (light, dark)]
    assert papers == ["rgb(255, 255, 255)", "rgb(22, 24, 29)"]
    assert dark.evaluate("document.querySelector('#curves')._fullLayout.paper_bgcolor") == "#16181d"
    assert said == []


@pytest.mark.slow
def test_what_is_hostile_stays_text_and_mixtures_are_told(folder, tmp_path, browser):
    write_run(folder, [0.5, 0.5], algorithm="stc", shared_init=False)
    write_run(folder, [0.5, 0.5], dataset="DIGITSA")
    name = write_run(folder, [0.3, 0.4], algorithm="fedprox")
    change(folder, name, title="<b>bold</b><img src=x>", failed="<i>why</i>", finished=False)
    path, said = tmp_path / "r.html", []
    program.program(["--csv_dir", str(folder), "--output", str(path)])
    window = opened(browser, path, said, address="#dataset=all&split=all&no=such&hidden=[oops")
    assert "MIXED" in window.inner_text("#band")
    assert window.locator("main b, main i, main img").count() == 0
    keys = [
        key.evaluate("key => [key.textContent, getComputedStyle(key).color] + ''")
        for key in window.locator("#legend .key").all()
    ]
    assert len(set(keys)) == len(keys) > 4  # no two look alike
    assert said == []
