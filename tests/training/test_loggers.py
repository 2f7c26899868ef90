"""Whatever a logger does (fail, hang, be slow), the run is the same, and the others have everything."""

import json
import sys
import threading
import time

import pytest

from minigpt.config import RequestError, load_config
from minigpt.training import Callback
from minigpt.training.loggers import BackgroundLogger, Histogram, LogBook, Logger, RunInfo, make_loggers


class Recorder(Logger):
    """Keeps everything, and by which thread it came."""

    def __init__(self):
        self.calls, self.threads = [], set()

    def _keep(self, *call):
        self.calls.append(call)
        self.threads.add(threading.get_ident())

    def start(self, run):
        self._keep("start", run)

    def log(self, metrics):
        self._keep("log", metrics)

    def histograms(self, step, values):
        self._keep("histograms", step, values)

    def sample(self, step, text):
        self._keep("sample", step, text)

    def message(self, text):
        self._keep("message", text)

    def failed(self, error):
        self._keep("failed", str(error))

    def close(self):
        self._keep("close")


class StopsAt(Callback):
    """Ends a session in the middle of a step, as an error or as a signal does."""

    def __init__(self, step, error):
        self.step, self.error = step, error

    def on_train_batch_end(self, trainer, step):
        if step == self.step:
            if self.error:
                raise RuntimeError("the machine is gone")
            trainer.signals.request()


def info(folder, step=0):
    return RunInfo(folder, {"a": 1}, "name", step, 10)


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# ---- what arrives ------------------------------------------------------------------------------------------------


def test_everything_arrives_in_order_in_one_other_thread(tmp_path, kit):
    recorder = Recorder()
    settings = kit.config(loggers={"every_steps": 1, "console": "quiet"})
    kit.train(settings, tmp_path / "run", loggers=[recorder])
    assert len(recorder.threads) == 1 and threading.get_ident() not in recorder.threads
    assert [call[1] for call in recorder.calls if call[0] == "log"] == lines(tmp_path / "run")
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert [call[1:] for call in recorder.calls if call[0] == "sample"] == [(s["step"], s["text"]) for s in samples]
    (first, run), *_, last = recorder.calls
    assert (first, last) == ("start", ("close",)) and len(run.id) == 16
    assert (run.run_dir, run.name, run.step, run.max_steps) == (tmp_path / "run", "run", 0, 6)
    assert run.config["training"]["max_steps"] == 6 and json.dumps(run.config)


def test_a_run_that_goes_on_has_the_same_id_and_says_from_where(tmp_path, kit):
    settings, first, second = kit.config(), Recorder(), Recorder()
    stopped = kit.train(settings, tmp_path / "run", loggers=[first], callbacks=[StopsAt(3, error=False)])
    assert stopped.exit_status == 143
    kit.train(settings, tmp_path / "run", loggers=[second])
    kit.train(settings, tmp_path / "other", loggers=[third := Recorder()])
    one, again, other = (recorder.calls[0][1] for recorder in (first, second, third))
    assert one.id == again.id != other.id and (one.step, again.step) == (0, 3)
    assert json.loads((tmp_path / "run" / "loggers.json").read_text()) == {"id": one.id}


def test_without_loggers_there_is_no_id(tmp_path, kit):
    kit.train(kit.config(), tmp_path / "run")
    assert not (tmp_path / "run" / "loggers.json").exists()


def test_a_damaged_id_is_named(tmp_path, kit):
    kit.train(kit.config(), tmp_path / "run", loggers=[Recorder()], callbacks=[StopsAt(3, error=False)])
    (tmp_path / "run" / "loggers.json").write_text("{}")
    with pytest.raises(RequestError, match=r"loggers\.json is damaged: delete it"):
        kit.train(kit.config(), tmp_path / "run", loggers=[Recorder()])


def test_a_run_that_fails_says_so_to_its_loggers(tmp_path, kit):
    recorder = Recorder()
    with pytest.raises(RuntimeError):
        kit.train(kit.config(), tmp_path / "run", loggers=[recorder], callbacks=[StopsAt(2, error=True)])
    assert recorder.calls[-2:] == [("failed", "the machine is gone"), ("close",)]


def test_what_a_logger_does_with_its_line_is_not_seen_by_others(tmp_path):
    class Greedy(Recorder):
        def log(self, metrics):
            metrics.clear()

    others = [Recorder(), Recorder()]
    book = LogBook(tmp_path, [others[0], Greedy(), others[1]])
    book.start(load_config({})[0], 0, 1)
    book.log({"step": 1, "train/loss": 2.0})
    book.close()
    for other in others:
        assert ("log", {"step": 1, "train/loss": 2.0}) in other.calls


# ---- what goes wrong ---------------------------------------------------------------------------------------------


class Raises(Recorder):
    def log(self, metrics):
        raise ConnectionError("the network\nis gone")


class RaisesAtOnce(Recorder):
    def start(self, run):
        raise SystemExit(3)


class Hangs(Recorder):
    def __init__(self):
        super().__init__()
        self.go_on = threading.Event()

    def log(self, metrics):
        self.go_on.wait(60)


class HangsAtOnce(Hangs):
    def start(self, run):
        self.go_on.wait(60)


class Slow(Recorder):
    def log(self, metrics):
        time.sleep(0.05)
        super().log(metrics)


@pytest.mark.parametrize("kind", [Raises, RaisesAtOnce, Hangs, HangsAtOnce, Slow])
def test_a_logger_in_trouble_changes_nothing(tmp_path, kit, monkeypatch, kind):
    """The run reaches its end while the logger hangs: were it waited for, this test would take a minute."""
    monkeypatch.setattr(BackgroundLogger, "patience", 0.2 if issubclass(kind, Hangs) else 15)
    kit.train(kit.config(), tmp_path / "alone")
    console, bad, good = kit.Console(), kind(), Recorder()
    began = time.monotonic()
    result = kit.train(kit.config(), tmp_path / "run", loggers=[bad, good], console=console)
    assert result.exit_status == 0 and time.monotonic() - began < 30
    if isinstance(bad, Hangs):
        bad.go_on.set()
    assert kit.outcome(tmp_path / "run") == kit.outcome(tmp_path / "alone")
    assert [call[1] for call in good.calls if call[0] == "log"] == lines(tmp_path / "run")
    said = [line for line in console.lines if kind.__name__ in line]
    wanted = {
        Raises: ["Raises is switched off, and the run goes on: ConnectionError: the network is gone"],
        RaisesAtOnce: ["RaisesAtOnce is switched off, and the run goes on: SystemExit: 3"],
        Slow: [],
    }
    assert said == wanted.get(kind, [f"{kind.__name__} has not finished in 0.2 s: the last steps may be missing there"])
    if kind is Slow:
        assert bad.calls == good.calls


def test_what_comes_too_fast_is_dropped_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(BackgroundLogger, "capacity", 5)
    monkeypatch.setattr(BackgroundLogger, "capacity_for_histograms", 2)
    said, slow = [], Hangs()
    logger = BackgroundLogger(slow, said.append)
    logger.start(info(tmp_path))
    logger.log({"step": 1})  # the thread takes this one and hangs
    while logger._entries.qsize():
        time.sleep(0.001)
    logger.sample(1, "a")
    logger.sample(2, "b")
    logger.histograms(2, {})
    for step in range(3, 10):
        logger.message(f"{step}")
    logger.start(info(tmp_path, 7))
    slow.go_on.set()
    logger.close()
    kept = [call[0] for call in slow.calls]
    assert kept == ["start", "sample", "sample", "message", "message", "message", "start", "close"]
    assert said == ["Hangs was slower than the run: 5 entries did not reach it"] and logger.dropped == 5


def test_patience_is_shared_by_all_that_hang(tmp_path, monkeypatch):
    monkeypatch.setattr(BackgroundLogger, "patience", 0.5)
    hanging = [HangsAtOnce() for _ in range(20)]
    book = LogBook(tmp_path, hanging)
    book.start(load_config({})[0], 0, 1)
    began = time.monotonic()
    book.close()
    assert time.monotonic() - began < 5  # not 20 times half a second
    for one in hanging:
        one.go_on.set()


def test_a_logger_of_a_run_that_never_started_is_not_waited_for(tmp_path):
    said = []
    logger = BackgroundLogger(Recorder(), said.append)
    logger.log({"step": 1})
    logger.close()
    logger.close()
    assert said == [] and logger.logger.calls == []


# ---- the config --------------------------------------------------------------------------------------------------


OWN = """
from minigpt import Logger, Section

class Notes(Logger):
    class Config(Section):
        greeting: str = "hello"

    def __init__(self, config):
        self.config = config

    def start(self, run):
        self.file = open(run.run_dir / "notes.txt", "a")
        print(self.config.greeting, run.step, file=self.file)

    def log(self, metrics):
        print(metrics["step"], sorted(metrics), file=self.file, flush=True)

    def close(self):
        self.file.close()
"""


def test_a_logger_of_ones_own(tmp_path, kit):
    (tmp_path / "own.py").write_text(OWN)
    own = {"kind": f"{tmp_path}/own.py:Notes", "greeting": "good day"}
    kit.train(kit.config(loggers__own=[own]), tmp_path / "run")
    first, *rest = (tmp_path / "run" / "notes.txt").read_text().splitlines()
    assert first == "good day 0"
    assert rest == [f"{line['step']} {sorted(line)}" for line in lines(tmp_path / "run")]
    with pytest.raises(RequestError, match=r"loggers\.own\.0\.greting"):
        kit.train(kit.config(loggers__own=[own | {"greting": "x"}]), tmp_path / "wrong")
    (tmp_path / "none.py").write_text("class Notes: pass")
    with pytest.raises(RequestError, match="no Logger"):
        kit.train(kit.config(loggers__own=[{"kind": f"{tmp_path}/none.py:Notes"}]), tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


@pytest.mark.parametrize("extra", ["tensorboard", "wandb", "trackio"])
def test_a_package_that_is_missing_is_named_before_training(tmp_path, kit, monkeypatch, extra):
    monkeypatch.setitem(sys.modules, extra, None)  # Python's way of saying that there is none
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    key = extra if extra == "tensorboard" else f"{extra}.enabled"
    with pytest.raises(RequestError) as error:
        kit.train(kit.config(**{f"loggers__{key.replace('.', '__')}": True}), tmp_path / "run")
    assert str(error.value).startswith(f"loggers.{key} needs a package that is not there (") and extra in str(
        error.value
    )
    assert str(error.value).endswith(f'): pip install "minigpt[{extra}]", or set loggers.{key}=false')
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "why"),
    [
        ("loggers.wandb.project=x", "loggers.wandb.enabled=false"),
        ("loggers.wandb.tags=[a]", "loggers.wandb.enabled=false"),
        ("loggers.trackio.project=x", "loggers.trackio.enabled=false"),
        ("loggers.histograms_every_steps=5", "no logger that shows histograms"),
    ],
)
def test_a_setting_without_an_effect_is_refused(override, why):
    with pytest.raises(RequestError, match="can have no effect") as error:
        load_config("shakespeare-char", [override])
    assert why in str(error.value)


def test_switching_a_logger_off_drops_what_the_file_says_of_it(tmp_path):
    (tmp_path / "c.yaml").write_text("loggers: {wandb: {enabled: true, project: p}, histograms_every_steps: 10}")
    on, _ = load_config(tmp_path / "c.yaml")
    assert on.loggers.wandb.project == "p" and on.loggers.histograms_every_steps == 10
    off, notes = load_config(tmp_path / "c.yaml", ["loggers.wandb.enabled=false"])
    assert not off.loggers.wandb.enabled and off.loggers.histograms_every_steps is None
    assert len(notes) == 2 and all("is dropped because" in note for note in notes)


def test_nothing_is_on_unless_asked_for():
    assert make_loggers(load_config({})[0].loggers, print) == []


# ---- the run -----------------------------------------------------------------------------------------------------


def test_a_histogram_counts_every_number(tmp_path, kit):
    """Against the tensors themselves, of the step that they belong to."""
    seen = {}

    class Keep(Callback):
        def on_before_optimizer_step(self, trainer):
            named = trainer.model.named_parameters()
            factor = trainer.gradient_factor
            seen.update({f"gradient/{n}": p.grad.double() * factor for n, p in named if p.grad is not None})

        def on_train_batch_end(self, trainer, step):
            seen.update({f"parameter/{n}": p.detach().clone() for n, p in trainer.model.named_parameters()})
            if step % 2 == 0:
                kept[step] = dict(seen)

    kept, recorder = {}, Recorder()
    settings = kit.config(loggers={"every_steps": 1, "console": "quiet", "tensorboard": True,
                                   "histograms_every_steps": 2})  # fmt: skip
    kit.train(settings, tmp_path / "run", loggers=[recorder], callbacks=[Keep()])
    found = {step: values for name, step, values in (c for c in recorder.calls if c[0] == "histograms")}
    assert list(found) == [2, 4, 6]
    for step, values in found.items():
        assert values.keys() == {f"monitor/{name.removesuffix('.weight')}" for name in kept[step]}
        for name, tensor in kept[step].items():
            one, numbers = values[f"monitor/{name.removesuffix('.weight')}"], tensor.double().flatten()
            assert isinstance(one, Histogram) and len(one.edges) == len(one.counts) + 1 == 65
            assert sum(one.counts) == numbers.numel()
            assert (one.edges[0], one.edges[-1]) == (numbers.min(), numbers.max()) or numbers.min() == numbers.max()
            below = [(numbers < edge).sum().item() for edge in one.edges[:-1]]
            assert [b - a for a, b in zip(below, [*below[1:], numbers.numel()], strict=True)] == one.counts


def test_numbers_that_are_not_finite_are_left_out_of_histograms():
    import torch

    from minigpt.training.histograms import histogram

    one = histogram(torch.tensor([1.0, float("nan"), 2.0, float("inf")]))
    assert one is not None and sum(one.counts) == 2 and one.edges[0] == 1 and one.edges[-1] == 2
    assert histogram(torch.tensor([float("nan")])) is None and histogram(torch.zeros(0)) is None
    assert sum(histogram(torch.tensor([3e38, -3e38])).counts) == 2
    assert sum(histogram(torch.zeros(7, dtype=torch.bfloat16)).counts) == 7
