"""What a report says of a run, and that the page needs nothing but itself."""

import base64
import hashlib
import json
import re

import pytest

from minigpt.config import RequestError, load_config

STARTED = "2026-03-04T05:06:07Z"
SESSION = {
    "started": STARTED, "step": 0, "max_steps": 200, "command": "minigpt train shakespeare-char",
    "machine": {"cpu": "A CPU", "cores": 2, "threads": 2, "memory_gb": 16.0, "gpu": None, "system": "Linux"},
    "versions": {"python": "3.12.0", "torch": "2.13.0"}, "git": {"commit": "0123456789abcdef0123", "dirty": True},
}  # fmt: skip


@pytest.fixture
def whole(kit):
    """A run of which everything is known."""
    return kit.run(
        samples=[{"step": 100, "text": "Once upon"}, {"step": 200, "text": "a time"}],
        sessions=[SESSION, SESSION | {"step": 100, "command": "minigpt train shakespeare-char --threads 2"}],
        journal=[{"step": 12, "rows": [1], "reason": "loss nan"},
                 {"restored_to": 10, "first_bad_step": 12, "rows": [1], "skipped_steps": 3, "reason": "loss inf"}],
    )  # fmt: skip


def figures(page):
    found = {}
    for figure in page.one("dl", class_="figures").all("div"):
        value = figure.one("dd")
        found[figure.one("dt").text] = value.children[0], value.all("small")[0].text if value.all("small") else ""
    return found


def test_the_headline_figures(kit, whole):
    found = figures(kit.page(whole))
    assert found["Validation loss"][0] == "2.1100" and found["Best validation loss"] == ("2.1100", "at step 200")
    assert found["Bits per byte"] == ("3.010", "best 3.010")
    assert found["Training loss"] == ("2.0100", "of the batch of step 200")
    assert found["Tokens"] == ("20k", "in 200 steps") and found["Training time"] == (
        "20 s",
        "in 2 sessions (1 resumed)",
    )
    assert found["Tokens a second"] == ("1k", "median; 1k overall") and found["MFU"][0] == "40.0%"
    assert found["Peak memory"][0] == "250 MB"
    assert found["Skipped steps"][0] == "0" and found["Restorations"][0] == "1"


def test_the_page_needs_nothing_else(kit, whole):
    html = kit.html(whole)
    page = kit.page(whole)
    assert not re.findall(r"""(?:src|srcset|href|action|data)\s*=\s*["'](?!#)""", html)
    assert not re.search(r"@import|url\(|https?://(?!www\.w3\.org/2000/svg)", page.one("style").text)
    scripts = [script for script in page.all("script") if script.attributes.get("type") != "application/json"]
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].text.encode()).digest()).decode()
    policy = page.one("meta", http_equiv="Content-Security-Policy").attributes["content"]
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy


def test_the_page_is_sound_html_for_people_who_do_not_see_it(kit, whole):
    page = kit.page(whole)
    ids = [node.attributes["id"] for node in page if "id" in node.attributes]
    assert len(set(ids)) == len(ids)
    for node in page:
        for name in ("for", "aria-labelledby"):
            if name in node.attributes:
                assert node.attributes[name] in ids, node
    for link in page.all("a"):
        assert link.attributes["href"].removeprefix("#") in ids
    assert page.one("html").attributes["lang"] == "en" and len(page.all("h1")) == 1 and page.one("title").text
    for plot in page.all(class_="plot"):
        assert plot.attributes["role"] == "img" and len(plot.attributes["aria-label"]) > 40
    for table in page.all("table"):
        assert all(cell.attributes.get("scope") in ("col", "row") for cell in table.all("th"))
    for control in page.all("input"):
        assert page.all("label", for_=control.attributes["id"]) or any(control in label for label in page.all("label"))


def test_the_loss_by_step_tokens_and_time_and_close_up(kit, whole):
    page = kit.page(whole)
    for view, first in (("step", "step 1"), ("tokens", "100 tokens"), ("time", "0.1 s"), ("close-up", "step 60")):
        chart = page.one("figure", id=f"loss-{view}")
        lines = {line["label"]: line for line in json.loads(chart.one("script").text)["lines"]}
        assert list(lines) == ["training, each batch", "training, smoothed", "validation"]
        assert lines["training, each batch"]["at"][0] == first
        assert lines["validation"]["is"][-1] == "2.1100"
        plot = chart.one("div", class_="plot")
        assert len(plot.all("path", class_="raw")) == 1 and plot.all("path", class_="dots")
        for label in ("x", "y"):
            ticks = [node.text for node in chart.all("span", class_=label)]
            assert len(ticks) >= 3 and len(set(ticks)) == len(ticks)
        for place in re.findall(r"[ML](-?\d+) (-?\d+)", plot.one("path", class_="raw").attributes["d"]):
            assert all(0 <= int(one) <= 10_000 for one in place)


def test_a_line_is_drawn_where_its_values_are(kit):
    lines = [
        {"step": step, "tokens": step, "time": step, "train/lr": lr} for step, lr in ((0, 0), (5, 5e-4), (10, 1e-3))
    ]
    chart = kit.page(kit.run(lines=lines)).one("figure", id="train-lr")
    assert chart.one("path", class_="line").attributes["d"] == "M0 10000L5000 5000L10000 0"
    ticks = [(node.text, node.attributes["style"]) for node in chart.all("span", class_="y")]
    assert ticks[0] == ("0", "top:100.0%") and ticks[-1] == ("1e-3", "top:0.0%")
    assert [node.text for node in chart.all("span", class_="x")] == ["0", "2", "4", "6", "8", "10"]


def test_the_other_charts(kit, whole):
    page = kit.page(whole)
    titles = [figure.one("h3").text for figure in page.one("section", id="training").all("figure")]
    assert titles == ["Learning rate", "Gradient norm", "Bits per byte", "Throughput", "Model FLOPs utilisation",
                      "Step time", "Wait for data", "Peak memory"]  # fmt: skip


def test_metrics_of_a_users_own_get_charts(kit, make_metrics):
    more = {"monitor/weight_norm/embed": 1.0, "monitor/weight_norm/norm": 2.0, "eval/x<y/score": 0.5, "train/own": 1}
    page = kit.page(kit.run(lines=make_metrics(50, **more)))
    found = page.one("section", id="further").all("figure")
    assert [figure.one("h3").text for figure in found] == ["monitor/weight_norm", "eval/x<y/score", "train/own"]
    assert [item.text for item in found[0].all("li")] == ["embed", "norm"]


def test_settings_are_shown_as_what_differs_from_the_preset(kit):
    run = kit.run(overrides=("data.train=my.txt", "optimizer.lr=0.002", "training.max_steps=50", "run.threads=2",
                             "model.vocab_size=65"))  # fmt: skip
    page = kit.page(run)
    section = page.one("section", id="settings")
    rows = section.one("table", class_="diff").rows()
    assert rows[0] == ["Key", "Preset shakespeare-char", "This run"]
    changed = {row[0]: row[1:] for row in rows[1:]}
    assert changed.keys() == {"data.train", "optimizer.lr", "training.max_steps", "model.vocab_size", "run.threads"}
    assert changed["optimizer.lr"] == ["0.001", "0.002"] and changed["data.train"][1] == "my.txt"
    assert changed["model.vocab_size"] == ["null", "65 found by the run"]
    assert section.one("details").one("pre").text.strip() == (run / "config.yaml").read_text().strip()


def test_settings_without_a_preset_differ_from_the_defaults(kit):
    config = "data: {train: a.txt}\nmodel: {n_layer: 3}\ntraining: {max_steps: 5}\n"
    section = kit.page(kit.run(config=config)).one("section", id="settings")
    rows = section.one("table", class_="diff").rows()
    assert rows[0][1] == "Defaults"
    assert {row[0]: row[1:] for row in rows[1:]}["model.n_layer"] == [str(load_config({})[0].model.n_layer), "3"]


def test_samples_machine_and_incidents(kit, whole):
    page = kit.page(whole)
    samples = [(article.one("h3").text, article.one("pre").text) for article in page.one(id="samples").all("article")]
    assert samples == [("step 100 validation loss 2.1200", "Once upon"), ("step 200 validation loss 2.1100", "a time")]
    first, second = page.one(id="sessions").all("article")
    assert first.one("h3").text == "Session 1, 2026-03-04 05:06 UTC, from the beginning"
    assert first.one("pre").text == "minigpt train shakespeare-char"
    facts = {fact.one("dt").text: fact.one("dd").text for fact in first.all("div")}
    assert facts["Processor"] == "A CPU" and facts["Versions"] == "python 3.12.0, torch 2.13.0"
    assert facts["Git commit"] == "0123456789ab with uncommitted changes" and "GPU" not in facts
    assert (
        second.one("h3").text.endswith("from step 100") and second.one("dl").text == "The restas in the session before"
    )
    said = [item.text for item in page.one(id="incidents").all("li")]
    assert said == ["Step 12 made no update: loss nan.",
                    "From step 12 on several steps in a row were bad (loss inf): back to step 10."]  # fmt: skip


def test_several_runs_are_compared(kit, make_metrics):
    one = kit.run("a/one")
    other = kit.run("b/two", make_metrics(300), overrides=("data.train=text.txt", "optimizer.lr=0.002"))
    page = kit.page(one, other)
    assert page.one("h1").text == "2 runs"
    table = page.one("table", class_="results").rows()
    assert [re.sub("Show in the charts: ", "", row[0]) for row in table] == ["Run", "one", "two"]
    assert dict(zip(table[0], table[1], strict=True))["Validation loss"] == "2.1100"
    best = [cell.text for cell in page.one("table", class_="results").all("strong")]
    assert best[0] == "2.1067 (lowest)"
    differing = page.one("table", class_="diff").rows()
    assert ["optimizer.lr", "0.001", "0.002"] in differing and "training.max_steps" not in str(differing)
    chart = page.one("figure", id="loss-step")
    for number in (1, 2):
        assert len(chart.all("path", class_=f"r{number}")) >= 2
        assert page.one("input", id=f"run-{number}").attributes["type"] == "checkbox"
        assert f"#run-{number}:not(:checked)) .r{number} {{ display: none; }}" in page.one("style").text


def test_the_same_run_twice_is_one_run(kit):
    run = kit.run()
    page = kit.page(run, run / ".." / run.name)
    assert page.one("h1").text == "run" and "was given twice" in page.one(class_="notes").text


def test_runs_of_one_name_are_told_apart_by_their_folders(kit):
    page = kit.page(kit.run("a/seed/run"), kit.run("b/seed/run"), kit.run("b/other"))
    names = [row[0].removeprefix("Show in the charts: ") for row in page.one("table", class_="results").rows()[1:]]
    assert names == ["a/seed/run", "b/seed/run", "other"]


def test_where_reports_are_written(kit, tmp_path, monkeypatch):
    from minigpt.reporting import write_report

    one, two = kit.run("one"), kit.run("two")
    monkeypatch.chdir(tmp_path)
    assert write_report([one]) == one / "report.html"
    assert str(write_report([one, two])) == "report.html" and (tmp_path / "report.html").is_file()
    assert write_report([one]) == one / "report.html"  # an old report is replaced
    precious = tmp_path / "precious.txt"
    precious.write_text("precious")
    with pytest.raises(RequestError, match=r"precious.txt exists and is not a report"):
        write_report([one], precious)
    assert precious.read_text() == "precious"
    assert [path.name for path in one.iterdir() if path.name.startswith(".")] == []


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def palettes(style):
    found = []
    for block in re.findall(r":root \{([^}]*--c8[^}]*)\}", style):
        colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{3,6})", block))
        found.append({k: "#" + "".join(2 * c for c in v[1:]) if len(v) == 4 else v for k, v in colours.items()})
    return found


def test_contrast_in_light_dark_and_on_paper(kit, whole):
    """WCAG 2.2: 4.5 for text (1.4.3), 3 for lines that carry meaning (1.4.11)."""
    found = palettes(kit.page(whole).one("style").text)
    assert len(found) == 3
    for colours in found:
        for name in ("text", "soft", "accent"):
            for back in ("back", "panel", "warn-back"):
                assert contrast(colours[name], colours[back]) >= 4.5, (name, back)
        for name in (*(f"c{i}" for i in range(1, 9)), "bad"):
            assert contrast(colours[name], colours["back"]) >= 3, name


# Linear RGB as people without one kind of cones see it (Machado et al. 2009, severity 1).
SIGHT = {
    "all": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "no long": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "no medium": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.01182, 0.04294, 0.968881)),
    "no short": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.3039)),
}


def oklab(colour, sight):
    """Ottosson 2020: equal distances look about equally large."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    r, g, b = (min(1, max(0, sum(m * c for m, c in zip(row, linear, strict=True)))) for row in sight)
    l = (0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b) ** (1 / 3)  # noqa: E741
    m = (0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b) ** (1 / 3)
    s = (0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b) ** (1 / 3)
    return (0.2104542553 * l + 0.793617785 * m - 0.0040720468 * s,
            1.9779984951 * l - 2.428592205 * m + 0.4505937099 * s,
            0.0259040371 * l + 0.7827717662 * m - 0.808675766 * s)  # fmt: skip


@pytest.mark.parametrize("sight", SIGHT)
def test_colours_are_told_apart_without_some_cones(kit, whole, sight):
    """Every two differ by five times what is just noticeable, 0.02 in Oklab (CSS Color 4, section 13.2)."""
    for colours in palettes(kit.page(whole).one("style").text):
        places = [oklab(colours[f"c{i}"], SIGHT[sight]) for i in range(1, 9)]
        closest = min(
            (sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) ** 0.5, i + 1, i + j + 2)
            for i, a in enumerate(places)
            for j, b in enumerate(places[i + 1 :])
        )
        assert closest[0] >= 0.1, closest
