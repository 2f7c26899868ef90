"""The page about the data of a run says what `describe` found, and needs nothing but itself."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from minigpt.config import DataConfig
from minigpt.data import describe
from minigpt.reporting import write_data_page
from minigpt.tokenizer import CharTokenizer, train_bpe

SIZE = 10_000
TEXTS = [('<b>&amp;"' if n == 3 else "") + f"word {n} " * (1 + n % 23) for n in range(150)]


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    """A mixture in two stages, of whole documents."""
    for name in ("first", "second"):
        rows = [json.dumps({"text": f"{name} {text}"}) for text in TEXTS]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    return {
        "train": [{"path": str(tmp_path / f"{name}.jsonl"), "weight": 1} for name in ("first", "second")],
        "stages": [{"from_step": 6, "weights": {"first": 1, "second": 3}}],
        "packing": "documents",
        "document_mask": True,
    }


def page_of(kit, tmp_path: Path, config: dict[str, Any], **options: Any) -> tuple[dict[str, Any], Any]:
    tokenizer = train_bpe(TEXTS, vocab_size=280, pattern="gpt2", special_tokens=["<|endoftext|>"])
    options = {"context_length": 64, "batch_rows": 4, "steps": lambda rows: 20, "windows": 4} | options
    found = describe(DataConfig.model_validate(config), tokenizer, tmp_path / "cache", **options)
    write_data_page(found, "a <title>", tmp_path / "page.html")
    return found, kit.parsed(tmp_path / "page.html")


def boxes(path: str) -> tuple[float, float]:
    """Width and height of a box, as shares of the drawing."""
    x0, y0, y1, x1 = map(int, re.fullmatch(r"M(-?\d+) (-?\d+)V(-?\d+)H(-?\d+)V\d+Z", path).groups())  # type: ignore
    return (x1 - x0) / SIZE, (y0 - y1) / SIZE


def test_the_numbers(kit, tmp_path: Path, config: dict[str, Any]) -> None:
    found, page = page_of(kit, tmp_path, config)
    assert page.one("h1").text == "a <title>"
    sources = page.one("section", id="sources").one("table").rows()
    for source, row in zip(found["sources"], sources[1:], strict=True):
        train, run = source["train"], source["run"]
        assert row == [
            source["name"], f"{train['documents']:,}", f"{train['tokens']:,}", f"{train['bytes']:,}",
            f"{train['bytes_per_token']:.2f}", f"{source['val']['tokens']:,}", f"{run['rows']:,}",
            f"{run['epochs']:.2f}", f"{100 * source['wasted']:.2f}%", *source["where"],
        ]  # fmt: skip
    mixture = page.one("section", id="mixture").one("table").rows()
    assert mixture[0] == ["Source", "Steps 1 to 5", "Steps 6 to 20", "In the run"]
    assert mixture[1:] == [["first", "50.00%", "25.00%", "31.25%"], ["second", "50.00%", "75.00%", "68.75%"]]


def test_the_drawings_have_the_sizes_of_their_numbers(kit, tmp_path: Path, config: dict[str, Any]) -> None:
    found, page = page_of(kit, tmp_path, config)
    charts = page.one("section", id="lengths").all("figure")
    for chart, key in zip(charts, ("documents", "tokens"), strict=True):
        counts = [count for source in found["lengths"]["sources"] for count in source[key] if count]
        heights = [boxes(bar.attributes["d"])[1] for bar in chart.all("path", class_="bars")]
        assert len(heights) == len(counts)
        scale = max(heights) / max(counts)
        assert heights == pytest.approx([count * scale for count in counts], abs=2e-4)
        assert sum(heights) > 0.4 and max(heights) <= 1
    strip = [boxes(bar.attributes["d"]) for bar in page.one("section", id="mixture").one("figure").all("path")]
    assert strip == [(0.25, 0.5), (0.25, 0.5), (0.75, 0.25), (0.75, 0.75)]


def test_the_rows_token_by_token(kit, tmp_path: Path, config: dict[str, Any]) -> None:
    found, page = page_of(kit, tmp_path, config, windows=12)
    articles = page.all("article")
    assert len(articles) == 12
    for window, article in zip(found["windows"], articles, strict=True):
        tokens = article.all("i")
        texts = [segment for segment in window["segments"] if not segment["padding"]]
        shown = [at for segment in texts for at in range(segment["start"], segment["stop"])]
        assert [token.text for token in tokens] == [window["pieces"][at].replace("\n", "↵\n") for at in shown]
        for at, token in zip(shown, tokens, strict=True):
            target = "nothing" if at in window["ignored"] else f"id {window['targets'][at]}"
            assert token.attributes["title"] == f"position {at}: id {window['ids'][at]}, predicts {target}"
        triangles = article.one("svg").all("path")
        sides = [re.fullmatch(r"M(\d+) \1V(\d+)H\2Z", path.attributes["d"]) for path in triangles]
        ranges = [(int(side[1]) * 64 / SIZE, int(side[2]) * 64 / SIZE) for side in sides if side]
        assert ranges == [pytest.approx((segment["start"], segment["stop"]), abs=0.01) for segment in texts]


def test_it_is_sound_and_needs_nothing_else(kit, tmp_path: Path, config: dict[str, Any]) -> None:
    _, page = page_of(kit, tmp_path, config)
    html = (tmp_path / "page.html").read_text("utf-8")
    assert not re.findall(r"""(?:src|srcset|href|action|data)\s*=\s*["'](?!#)""", html)
    assert not re.search(r"@import|url\(|https?://", page.one("style").text) and not page.all("script")
    assert "default-src 'none'" in page.one("meta", http_equiv="Content-Security-Policy").attributes["content"]
    ids = [node.attributes["id"] for node in page if "id" in node.attributes]
    assert len(set(ids)) == len(ids)
    for node in page:
        assert node.attributes.get("aria-labelledby", ids[0]) in ids
    for link in page.all("a"):
        assert link.attributes["href"].removeprefix("#") in ids
    for drawing in [*page.all(class_="plot"), *page.all("svg", class_="mask")]:
        assert drawing.attributes["role"] == "img" and len(drawing.attributes["aria-label"]) > 40


@pytest.mark.parametrize(
    "more",
    [{}, {"streaming": True, "val_documents": 3}, {"val": {"text": "word " * 300}}, {"val_fraction": 0}],
    ids=str,
)
def test_other_data(more: dict[str, Any], kit, tmp_path: Path, config: dict[str, Any]) -> None:
    plain = {"train": config["train"][0]["path"]} | more
    found, page = page_of(kit, tmp_path, plain, steps=None, windows=1)
    assert page.all("section", id="lengths") == [] if more.get("streaming") else page.one("section", id="lengths")
    assert not page.all("section", id="mixture") and len(page.all("article")) == 1
    triangle = page.one("article").one("svg").one("path").attributes["d"]
    assert triangle == "M0 0V10000H10000Z"  # without a mask each position sees all before it
    names = [row[0] for row in page.one("section", id="sources").one("table").rows()[1:]]
    assert names == [source["name"] for source in found["sources"]] + (
        [part["name"] for part in found["validation"]] if "val" in more or "val_documents" in more else []
    )


def test_one_document_and_a_long_row(kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minigpt.reporting.data_page.MAX_TOKENS", 10)
    letters = CharTokenizer.from_texts(["abc\u202e\x1b"])
    config = DataConfig.model_validate({"train": {"text": "abc\u202e\x1b" * 40}, "val_fraction": 0})
    write_data_page(describe(config, letters, tmp_path / "cache", context_length=64), "x", tmp_path / "page.html")
    page = kit.parsed(tmp_path / "page.html")
    assert not page.all("figure") and page.one("section", id="lengths").one("table").rows()[1][1] == "200"
    first = page.all("article")[0]
    assert len(first.all("i")) == 10 and "54 more tokens" in first.text
    assert "\u202e" not in page.text and "\x1b" not in page.text and first.text.count("\ufffd") == 4
