"""The page of a run holds everything that it shows, in reading order, and starts with alarms."""

import base64
import re

import pytest

from prismatic import report
from prismatic.report.record import Record

from . import records

LIMIT = 3_000_000


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    record = records.without(*records.TABLES)
    folder = tmp_path_factory.mktemp("run") / report.FOLDER
    return report.write_report(record, folder, "attractive <b>&amp; helical")


def test_the_page_is_self_contained(written):
    *pictures, page = written
    assert page.name == "report.html" and {path.suffix for path in pictures} == {".png"}
    text = page.read_text()
    assert len(text) < LIMIT
    assert "http" not in text and "<script" not in text and "<link" not in text
    inside = re.findall(r'<img src="data:image/png;base64,([^"]+)" alt="[^"]+">', text)
    assert [base64.b64decode(data) for data in inside] == [path.read_bytes() for path in pictures]
    assert text.count("<img") == len(pictures)


def test_the_page_is_in_reading_order(written):
    *pictures, page = written
    text = page.read_text()
    assert re.findall(r"<h2>(.*?)</h2>", text) == list(report.CHAPTERS)
    readings = [one.reading for chapter in report.CHAPTERS.values() for one in chapter]
    names = [one.name for chapter in report.CHAPTERS.values() for one in chapter]
    assert [path.stem for path in pictures] == [n for n in names if not n.endswith("_table")]
    shown = re.findall(r"<figcaption>(.*?)</figcaption>", text)
    assert len(shown) == len(pictures) and all(0 < len(reading) < 300 for reading in readings)
    assert text.count("No picture of ") == 2 and "mixed function of two tokens" in text


def test_the_head_names_the_run_and_its_results(written):
    head = written[-1].read_text().partition("<h2>")[0]
    assert "attractive &lt;b&gt;&amp;amp; helical" in head and "<b>" not in head
    assert "router prismatic" in head and "views 4" in head
    for cell in ("validation loss", "2.4", "unigram (baseline)", "3", "validation loss on bible"):
        assert f"<td>{cell}</td>" in head
    assert "No alarm" in head


def test_alarms_and_remedies_come_first(tmp_path):
    record = records.with_alarms((30, "router_collapse"), (40, "router_collapse"), (35, "nan"))
    collapse, nan = report.compute_alarms(record)
    assert (collapse.name, collapse.step, collapse.times) == ("router_collapse", 30, 2)
    assert (nan.step, nan.times, nan.remedy) == (35, 1, "act")
    page = report.write_report(Record(record.about, record.lines[-3:]), tmp_path, "run")[-1]
    head = page.read_text().partition("<h2>")[0]
    assert "No alarm" not in head and head.index("router_collapse") < head.index("nan")
    assert (
        "step 30, 2 times" in head and "&lt;nan&gt; was seen" in head and "What to do: act" in head
    )


def test_a_description_has_the_alarms_the_results_and_a_picture_of_each_chapter(written):
    text = report.described(records.with_alarms((30, "nan"), (10, "dead_view")))
    assert "**Alarm: dead_view.** Step 10: <dead_view> was seen. What to do: act." in text
    assert "No alarm" not in text and "\n| validation loss | 2.4000 |\n" in text
    assert report.described(Record()).startswith("**No alarm.**\n\nAll pictures")
    names = [path.stem for path in report.leading(written)]
    assert names == ["losses", "forced", "weights", "logits", "lens"]


def test_results_are_the_last_and_the_best():
    lines = ({"step": 5, "loss/val": 2.0}, {"step": 9, "loss/val": 3.0})
    found = report.compute_results(Record({"vocab": 256}, lines))
    assert found["validation loss"] == "3.0000" and found["best validation loss"] == "2"
    assert found["best at step"] == "5"
    assert found["bits per byte"] == "4.3281"
    assert "bits per byte" not in report.compute_results(Record({"vocab": 10}, lines))
    assert report.compute_results(Record()) == {}
    partly = ({"step": 5, "loss/val": 2.0, "loss/domain_D": [1.0, 2.0]},)
    assert "validation loss on a" not in report.compute_results(
        Record({"domains": ["a", "b", "c"]}, partly)
    )


def test_a_record_of_nothing_gives_a_page_of_reasons(tmp_path):
    [page] = report.write_report(Record(), tmp_path, "killed")
    pictures = sum(map(len, report.CHAPTERS.values()))
    assert page.read_text().count("No picture of ") == pictures
