"""Run folders made by hand, and a small strict HTML parser to look at what a report says of them."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from minigpt.config import config_yaml, load_config
from minigpt.reporting import write_report

VOID = {"meta", "input", "br", "link", "img", "hr"}


@dataclass
class Node:
    """An element of a page."""

    tag: str
    attributes: dict[str, str] = field(default_factory=dict)
    children: list["Node | str"] = field(default_factory=list)

    def __iter__(self) -> Iterator["Node"]:
        """Itself and everything below it."""
        yield self
        for child in self.children:
            if isinstance(child, Node):
                yield from child

    def all(self, tag: str = "", **attributes: str) -> list["Node"]:
        """Elements of this tag that have these attributes; `class_` asks for one of the classes."""
        wanted_class = attributes.pop("class_", None)
        wanted = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
        return [
            node
            for node in self
            if (not tag or node.tag == tag)
            and (wanted_class is None or wanted_class in node.classes)
            and all(node.attributes.get(name) == value for name, value in wanted.items())
        ]

    def one(self, tag: str = "", **attributes: str) -> "Node":
        found = self.all(tag, **attributes)
        assert len(found) == 1, f"{len(found)} of <{tag}> with {attributes}"
        return found[0]

    @property
    def classes(self) -> list[str]:
        return self.attributes.get("class", "").split()

    @property
    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    def rows(self) -> list[list[str]]:
        """The cells of a table."""
        return [[" ".join(c.text.split()) for c in row if c.tag in ("td", "th")] for row in self.all("tr")]


class Parser(HTMLParser):
    """Builds the tree, and refuses what a browser would have to guess."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Node("")
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), f"<{tag}> has an attribute twice"
        node = Node(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def parse(html: str) -> Node:
    parser = Parser()
    parser.feed(html)
    parser.close()
    assert [node.tag for node in parser.open] == [""], "something is not closed"
    return parser.root


def metrics(steps: int, every: int = 10, **more: Any) -> list[dict[str, Any]]:
    """Lines as a run of so many steps logs them, with an evaluation every tenth line; the losses fall like 1 / step."""
    lines: list[dict[str, Any]] = []
    for step in [1, *range(every, steps + 1, every)]:
        place = {"step": step, "tokens": 100 * step, "time": step / 10}
        lines.append(place | {
            "train/loss": 2 + 2 / step, "train/lr": 1e-3, "train/grad_norm": 1.5, "train/skipped": 0,
            "perf/tokens_per_second": 1000.0, "perf/step_ms": 100.0, "perf/step_ms_p90": 110.0,
            "perf/data_wait_ms": 0.1, "perf/mfu": 0.4, "memory/peak_mb": 250.0,
        } | more)  # fmt: skip
        if step % (10 * every) == 0:
            lines.append(place | {"val/loss": 2.1 + 2 / step, "val/bpb": 3 + 2 / step})
    return lines


@dataclass
class Kit:
    """Makes run folders below a folder."""

    folder: Path

    def run(
        self,
        name: str = "run",
        lines: list[dict[str, Any]] | str | bytes | None = None,
        *,
        config: str | None = None,
        overrides: tuple[str, ...] = ("data.train=text.txt", "model.vocab_size=65", "run.threads=2", "run.device=cpu"),
        samples: list[dict[str, Any]] | None = None,
        sessions: list[Any] | None = None,
        journal: list[Any] | None = None,
    ) -> Path:
        folder = self.folder / name
        folder.mkdir(parents=True)
        if config is None:
            config = config_yaml(load_config("shakespeare-char", overrides)[0])
        (folder / "config.yaml").write_text(config, encoding="utf-8")
        lines = metrics(200) if lines is None else lines
        data = lines if isinstance(lines, bytes) else lines.encode() if isinstance(lines, str) else jsonl(lines)
        (folder / "metrics.jsonl").write_bytes(data)
        for file, entries in (("samples", samples), ("environment", sessions), ("skipped", journal)):
            if entries is not None:
                (folder / f"{file}.jsonl").write_bytes(jsonl(entries))
        return folder

    def page(self, *runs: Path, **options: Any) -> Node:
        """The report of these runs, parsed."""
        return parse(self.html(*runs, **options))

    def parsed(self, path: Path) -> Node:
        """Another page."""
        return parse(path.read_text("utf-8"))

    def html(self, *runs: Path, out: Path | None = None) -> str:
        path = write_report(list(runs), out or self.folder / "page.html")
        return path.read_text("utf-8")


def jsonl(entries: list[Any]) -> bytes:
    lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
    return "".join(line + "\n" for line in lines).encode("utf-8", "surrogatepass")


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    return Kit(tmp_path)


@pytest.fixture
def make_metrics() -> Callable[..., list[dict[str, Any]]]:
    return metrics
