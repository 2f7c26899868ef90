"""Reports of runs that are unfinished, damaged, hostile or very long."""

import json
import os
import shutil
import subprocess
import sys
from itertools import pairwise

import pytest

from minigpt.config import RequestError, WorkError
from minigpt.reporting import report_at_end, write_report
from minigpt.reporting.lines import Damage, read_lines
from minigpt.reporting.runs import read_run

EVIL = "<script>alert('x')</script>\"'&<!--</pre></style>]]>{{ 7*7 }}{% raw %}\u202e\x00\ud800"


def notes(page):
    found = page.all(class_="notes")
    return [item.text for item in found[0].all("li")] if found else []


def own_scripts(page):
    return [script for script in page.all("script") if script.attributes.get("type") != "application/json"]


def test_a_run_that_is_being_written(kit, make_metrics):
    whole = "".join(json.dumps(line) + "\n" for line in make_metrics(100))
    run = kit.run(lines=whole + '{"step": 110, "train/lo')
    page = kit.page(run)
    assert "Not finished: at step 100 of 2,000" in page.one(class_="status").text and notes(page) == []


def test_damaged_lines_are_named(kit, make_metrics):
    lines = [json.dumps(line) for line in make_metrics(100)]
    lines[1:1] = ["{not json", "[1, 2]", '{"tokens": 5}', '{"step": "7"}', "\x00\xff", "7", "", '{"step": -1}']
    page = kit.page(kit.run(lines="\n".join(lines) + "\n"))
    assert notes(page) == ["7 lines of metrics.jsonl could not be read and are left out (lines 2, 3, 4, 5, 6, …)."]
    assert page.all("figure", id="loss-step")


def test_the_same_bytes_as_lines(tmp_path):
    """Every cut of a file gives the lines that are whole in it, and no damage."""
    whole = b'{"a": 1}\n{"b": "\xc3\xa4"}\n{"c": [1, 2]}\n'
    path = tmp_path / "x.jsonl"
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        damage = Damage()
        found = [number for number, _ in read_lines(path, damage)]
        complete = whole[:length].count(b"\n") + (whole[:length].split(b"\n")[-1] in whole.split(b"\n")[:3])
        assert found == list(range(1, complete + 1 if whole[:length] else 1)) and damage.count == 0


def test_endless_and_deeply_nested_lines(kit):
    lines = (
        b'{"step": 1, "x": "' + 3_000_000 * b"a" + b'"}\n' + b"[" * 100_000 + b"\n" + b'{"step": 2, "train/loss": 1}\n'
    )
    run = read_run(kit.run(lines=lines), "run", 100)
    assert run.lines == 1 and run.step == 2 and run.notes[0].startswith("2 lines of metrics.jsonl could not be read")


@pytest.mark.parametrize("nothing", ["", "\n\n", '{"step": 5'])
def test_no_metrics_at_all(kit, nothing):
    page = kit.page(kit.run(lines=nothing))
    assert notes(page) == ["No metrics have been logged yet."] and page.all("figure") == []
    assert page.one("section", id="settings")


def test_only_a_config_and_only_metrics(kit):
    run = kit.run("a")
    (run / "metrics.jsonl").unlink()
    assert notes(kit.page(run)) == ["No metrics have been logged yet."]
    run = kit.run("b")
    (run / "config.yaml").unlink()
    page = kit.page(run)
    assert notes(page) == ["There is no config.yaml: what the run was made with is not known."]
    assert page.all("figure", id="loss-step") and page.all("table", class_="diff") == []


@pytest.mark.parametrize("config", ["run: {", "- a\n- b\n", "model: 3\nrun: [1]\n", "own: {key: 1}\n", "\xff", ""])
def test_any_config_is_shown(kit, config):
    page = kit.page(kit.run(config=config))
    assert page.all("figure", id="loss-step") and page.one("section", id="settings")


def test_a_run_without_validation(kit, make_metrics):
    lines = [line for line in make_metrics(100) if "val/loss" not in line]
    page = kit.page(kit.run(lines=lines))
    chart = page.one("figure", id="loss-step")
    assert [item.text for item in chart.all("li")] == ["training, each batch", "training, smoothed"]
    assert "Validation loss" not in page.one("dl", class_="figures").text


def test_values_that_are_not_finite(kit, make_metrics):
    lines = make_metrics(100)
    for i, value in ((2, "nan"), (3, "inf"), (4, "-inf"), (5, float("nan"))):
        lines[i]["train/loss"] = value
    lines[-1]["val/loss"] = "nan"
    page = kit.page(kit.run(lines=lines))
    assert notes(page) == ["The training loss was not finite 4 times (steps 20, 30, 40, 50)."]
    chart = page.one("figure", id="loss-step")
    assert chart.one("path", class_="mark").attributes["d"].count("M") == 4
    assert "nan" not in "".join(path.attributes["d"] for path in chart.all("path")).lower()
    assert "NaN" in page.one("dl", class_="figures").text


@pytest.mark.parametrize("values", [[0], [5], [0, 0, 0], [-1, -1], [1e308, -1e308], [1e-320], [10**400, 1], [True, "x"],
                                    [1e-5, 1e9], [-3, 1e6], [1e99, -1e99]])  # fmt: skip
def test_strange_values(kit, values):
    keys = ("train/loss", "train/lr", "train/grad_norm", "perf/tokens_per_second", "perf/mfu", "own/metric", "val/loss")
    lines = [{"step": i, "tokens": value, "time": value} | dict.fromkeys(keys, value) for i, value in enumerate(values)]
    for figure in kit.page(kit.run(lines=lines)).all("figure"):
        assert figure.all("path", class_="line") or figure.all("path", class_="dots")


def test_hostile_text_stays_text(kit, make_metrics):
    hostile = {f"own/{EVIL}": 1.0, f"own2/{EVIL}/a": 1.0, f"own2/{EVIL}/b": 2.0}
    run = kit.run(
        "<img src=x onerror=alert(1)> & \"name\" 'quoted'",
        make_metrics(50, **hostile),
        config="run: {name: '<script>alert(2)</script>'}\nmodel: {n_layer: '</pre><script>alert(3)</script>'}\n",
        samples=[{"step": 50, "text": EVIL}],
        sessions=[{"started": EVIL, "step": EVIL, "command": EVIL, "machine": {"cpu": EVIL}, "git": {"commit": EVIL},
                   "versions": {EVIL: EVIL}}, {"machine": 5, "versions": [EVIL], "git": EVIL, "max_steps": EVIL}],
        journal=[{"step": EVIL, "reason": EVIL}, {"restored_to": [EVIL], "reason": {EVIL: 1}}],
    )  # fmt: skip
    other = kit.run("plain")
    for page in (kit.page(run), kit.page(run, other)):
        assert len(own_scripts(page)) == 1 and page.all("img") == []
        assert not [node for node in page if any(name.startswith("on") for name in node.attributes)]
        assert "49" not in [sample.text for sample in page.all("pre")]
        shown = page.one(id="samples").all("pre")[0].text
        assert shown == EVIL.replace("\u202e", "\ufffd").replace("\x00", "\ufffd").replace("\ud800", "\ufffd")


def test_samples_of_a_long_run_are_an_even_choice(kit):
    page = kit.page(kit.run(samples=[{"step": i, "text": f"sample {i}"} for i in range(1, 1001)]))
    shown = [int(pre.text.split()[1]) for pre in page.one(id="samples").all("pre")]
    assert len(shown) <= 12 and shown[0] == 1 and shown[-1] == 1000
    assert len({b - a for a, b in pairwise(shown[:-1])}) == 1
    assert "of 1,000 samples" in page.one(id="samples").text


def long_run(folder, lines):
    with open(folder / "metrics.jsonl", "w") as file:
        for i in range(1, lines + 1):
            line = {"step": i, "tokens": 768 * i, "time": i / 50, "train/loss": 2 + 2 / i + (i * 7919 % 101) / 500,
                    "train/lr": 1e-3, "train/grad_norm": 1 + (i * 31 % 17) / 10, "train/skipped": 0,
                    "perf/tokens_per_second": 38_000 + i % 91, "perf/step_ms": 20 + i % 7, "perf/step_ms_p90": 25,
                    "perf/data_wait_ms": 0.05, "perf/mfu": 0.4 + i % 5 / 100, "memory/peak_mb": 400.5}  # fmt: skip
            if i == 37_777:
                line["train/loss"] = 9.0
            if i % 250 == 0:
                line |= {"val/loss": 2.1 + 2 / i, "val/bpb": 3.0}
            file.write(json.dumps(line) + "\n")


MEASURED = """
import re, sys
from pathlib import Path
from minigpt.reporting import write_report
def peak():  # not getrusage's, which also counts what the program that started this one had taken
    return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
before = peak()
write_report([Path(sys.argv[1])])
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
@pytest.mark.parametrize("lines", [20_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_a_long_run_is_thinned_in_little_memory(kit, lines):
    run = kit.run()
    long_run(run, lines)
    done = subprocess.run([sys.executable, "-c", MEASURED, str(run)], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 60  # MB; the log of a million lines has some 300
    assert (run / "report.html").stat().st_size < 1_500_000
    chart = kit.page(run).one("figure", id="loss-step")
    bands = chart.one("path", class_="band").attributes["d"]
    heights = [int(place.split(" ")[1]) for place in bands.strip("MZ").split("L")]
    assert min(heights) < 0.2 * 10_000  # the one spike to 9 is still there


def test_many_runs_make_a_page_of_some_megabytes(kit, make_metrics):
    runs = [kit.run(f"run{i:02}", make_metrics(4000, every=2)) for i in range(12)]
    html = kit.html(*runs)
    assert len(html) < 3_000_000


def test_what_is_no_run(kit, tmp_path):
    run = kit.run("runs/mine")
    (run / "model").mkdir()
    for path, words in (
        (tmp_path / "nothing", "does not exist"),
        (run / "metrics.jsonl", "is a file"),
        (tmp_path / "runs", "is not a run folder: it has neither config.yaml nor metrics.jsonl"),
        (run / "model", "is a part of the run"),
    ):
        with pytest.raises(RequestError, match=words):
            write_report([run, path])
    assert not (tmp_path / "report.html").exists()


def test_places_where_no_report_can_be(kit, tmp_path):
    run = kit.run()
    for out, words in ((tmp_path, "is a folder"), (tmp_path / "no" / "x.html", "there is no folder"),
                       (run / "config.yaml" / "x.html", "there is no folder")):  # fmt: skip
        with pytest.raises(RequestError, match=words):
            write_report([run], out)


def test_a_disk_that_refuses(kit, monkeypatch):
    from minigpt.storage import fs

    run = kit.run()
    write_report([run])
    before = (run / "report.html").read_bytes()

    def full(path, data):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(fs, "write_file", full)
    with pytest.raises(WorkError, match=r"could not write .*report\.html"):
        write_report([run])
    assert (run / "report.html").read_bytes() == before and not list(run.glob(".tmp*"))
    said = []
    assert report_at_end(run, said.append) is None and len(said) == 1 and "report.html" in said[0]


def test_after_training_nothing_can_go_wrong(kit, monkeypatch, tmp_path):
    said = []
    assert report_at_end(tmp_path / "nothing", said.append) is None and said == []
    run = kit.run()
    assert report_at_end(run, said.append) == run / "report.html" and said == []
    monkeypatch.setattr("minigpt.reporting.write.render", lambda *arguments: 1 / 0)
    assert report_at_end(run, said.append) is None and "division by zero" in said[0]
    (run / "report.html").write_text("mine")
    assert report_at_end(run, said.append) is None and (run / "report.html").read_text() == "mine"


def test_checkpoints_that_vanish_while_they_are_read(kit):
    run = kit.run()
    for name in ("step-00000100", "step-00000200"):
        (run / "checkpoints" / name).mkdir(parents=True)
    (run / "checkpoints" / "step-00000200" / "model.safetensors").write_bytes(b"half a file")
    assert kit.page(run).all(id="model") == []
    shutil.rmtree(run / "checkpoints")
    assert kit.page(run).all(id="model") == []
