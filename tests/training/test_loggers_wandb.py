"""Weights & Biases without a network: what its offline file holds, and what becomes of a server that is not there.

The file is read with W&B's own record type. Its framing is LevelDB's log format (blocks of 32 KiB; records with a
checksum, a length and a type) behind a header of seven bytes.
"""

import json
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import minigpt
from minigpt.config import RequestError, config_yaml
from minigpt.training import Callback
from minigpt.training.loggers import BackgroundLogger
from minigpt.training.loggers import wandb as module

wandb = pytest.importorskip("wandb")

OWN_KEYS = {"_step", "_runtime", "_timestamp"}
BLOCK = 32768


@pytest.fixture(autouse=True)
def _nothing_leaves_the_machine(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_SILENT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", "/nowhere/netrc")
    yield
    wandb.teardown()


class Ends(Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, step):
        if step == self.step:
            trainer.signals.request(signal.SIGINT)


def records(path):
    """The records of an offline file."""
    from wandb.proto import wandb_internal_pb2

    data = path.read_bytes()
    assert data[:4] == b":W&B"
    position, parts = 7, b""
    while position < len(data):
        left = BLOCK - position % BLOCK
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        parts = (b"" if kind in (1, 2) else parts) + data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record


def history(path):
    """{step: {key: value}}; what is no number is a dictionary."""
    rows = {}
    for record in records(path):
        if record.HasField("history"):
            row = {}
            for item in record.history.item:
                *outer, last = item.nested_key or [item.key]
                node = row
                for name in outer:
                    node = node.setdefault(name, {})
                node[last] = json.loads(item.value_json)
            assert row["_step"] not in rows
            rows[row["_step"]] = row
    return rows


def sessions(folder):
    wandb.teardown()  # a file is complete when W&B's own process, which writes it, has ended
    return sorted((folder / "wandb").glob("offline-run-*/*.wandb"))


def logged(folder):
    """What W&B should have: the lines of a step in one row."""
    rows = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        rows.setdefault(values["step"], {}).update(values)
    return rows


def metrics_of(row):
    return {k: v for k, v in row.items() if k not in OWN_KEYS and not isinstance(v, dict)}


def test_everything_is_in_the_offline_file(tmp_path, kit):
    settings = kit.config(loggers={
        "every_steps": 1, "console": "quiet", "histograms_every_steps": 3,
        "wandb": {"enabled": True, "project": "p", "entity": "e", "name": "n", "group": "g", "tags": ["a", "b"]},
    })  # fmt: skip
    kit.train(kit.config(), tmp_path / "off")
    console = kit.Console()
    kit.train(settings, tmp_path / "run", console=console)
    assert kit.outcome(tmp_path / "run") == kit.outcome(tmp_path / "off")
    [file] = sessions(tmp_path / "run")
    rows, wanted = history(file), logged(tmp_path / "run")
    assert {step: metrics_of(row) for step, row in rows.items()} == wanted and len(wanted) == 6
    keys = {name for row in rows.values() for name in row} - OWN_KEYS
    tensors = {name for name in keys if name.startswith(("monitor/gradient/", "monitor/parameter/"))}
    assert keys == {name for row in wanted.values() for name in row} | tensors | {"sample"}
    assert len(tensors) == 20 and "monitor/gradient/blocks.0.attention.qkv" in tensors
    for step, row in rows.items():
        assert tensors <= row.keys() if step % 3 == 0 else not tensors & row.keys()
    one = rows[3]["monitor/parameter/blocks.0.attention.qkv"]
    assert one["_type"] == "histogram" and len(one["bins"]) == len(one["values"]) + 1 and sum(one["values"]) > 0
    for sample in map(json.loads, (tmp_path / "run" / "samples.jsonl").read_text().splitlines()):
        shown = rows[sample["step"]]["sample"]
        assert shown["_type"] == "html-file"
        page = file.parent / "files" / shown["path"]
        assert f"<pre style='white-space: pre-wrap'>{sample['text']}</pre>" in page.read_text()
    [run] = [record.run for record in records(file) if record.HasField("run")]
    identity = json.loads((tmp_path / "run" / "loggers.json").read_text())["id"]
    assert (run.run_id, run.project, run.entity, run.display_name) == (identity, "p", "e", "n")
    assert (run.run_group, list(run.tags)) == ("g", ["a", "b"])
    config = {item.key: json.loads(item.value_json) for item in run.config.update if item.key}
    assert config["model"]["n_embd"] == 32 and config["loggers"]["wandb"]["project"] == "p"
    exits = [record.exit.exit_code for record in records(file) if record.HasField("exit")]
    assert exits == [0]
    assert console.lines[-1] == (
        f"Weights & Biases is offline: `wandb sync --id {identity} {file.parent}` sends this session later"
    )


def test_a_run_that_goes_on_is_the_same_run_there(tmp_path, kit):
    settings = kit.config(loggers__wandb={"enabled": True})
    kit.train(settings, tmp_path / "run", callbacks=[Ends(3)])
    kit.train(settings, tmp_path / "run")
    kit.train(kit.config(), tmp_path / "off")
    assert kit.outcome(tmp_path / "run") == kit.outcome(tmp_path / "off")
    files = sessions(tmp_path / "run")
    found = [[record.run for record in records(file) if record.HasField("run")] for file in files]
    identity = json.loads((tmp_path / "run" / "loggers.json").read_text())["id"]
    assert [[run.run_id for run in runs] for runs in found] == [[identity], [identity]]
    assert found[0][0].display_name == "run" and found[0][0].project == "minigpt"
    rows = [{step: metrics_of(row) for step, row in history(file).items()} for file in files]
    first, second = rows if min(rows[0]) == 1 else rows[::-1]
    assert (list(first), list(second)) == ([1, 2, 3], [4, 5, 6]) and first | second == logged(tmp_path / "run")


def test_a_failed_run_is_shown_as_failed(tmp_path, kit):
    class Fails(Callback):
        def on_train_batch_end(self, trainer, step):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        kit.train(kit.config(loggers__wandb={"enabled": True}), tmp_path / "run", callbacks=[Fails()])
    [file] = sessions(tmp_path / "run")
    assert [record.exit.exit_code for record in records(file) if record.HasField("exit")] == [1]


def test_rows_only_go_forward():
    """What W&B would refuse, with a warning on the console, is not sent: a step that it has passed already."""

    rows = []

    class Run:
        def log(self, values, step):
            rows.append((step, values["x"]))

    logger = module.WandbLogger(None, print)
    logger._run, logger._step = Run(), 3  # as after a resume: the server has rows up to step 2
    for step, x in ((2, "old"), (3, "a"), (3, "b"), (5, "c"), (4, "again"), (5, "again too"), (6, "d")):
        logger.log({"step": step, "x": x})
    assert rows == [(3, "a"), (3, "b"), (5, "c"), (5, "again too"), (6, "d")]


def test_an_upload_that_does_not_end(tmp_path):
    """W&B gives up after a while; what it has not sent is on the disk, and there is a command that sends it."""

    class Run:
        settings = SimpleNamespace(sync_dir=f"{tmp_path}/a run")

        def finish(self, exit_code):
            raise TimeoutError

    said = []
    logger = module.WandbLogger(None, said.append)
    logger.close()
    assert said == []
    logger._run, logger._id = Run(), "abc"
    logger.close()
    assert said == [f"Weights & Biases has not got everything: `wandb sync --id abc '{tmp_path}/a run'` sends the rest"]
    settings = module.quiet_setup()
    assert settings.finish_timeout_raises and 0 < settings.finish_timeout < BackgroundLogger.patience
    assert 0 < settings.init_timeout < BackgroundLogger.patience and settings.silent and settings.console == "off"


@pytest.mark.slow
def test_a_server_that_is_not_there(tmp_path, kit, monkeypatch):
    """A port that nobody listens on. The run does not notice; the session is kept, whole, for later."""
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(module, "INIT_SECONDS", 1.0)
    wandb.teardown()
    console = kit.Console()
    settings = kit.config(loggers__wandb={"enabled": True})
    result = kit.train(settings, tmp_path / "run", console=console)
    assert result.exit_status == 0
    [file] = sessions(tmp_path / "run")
    assert {step: metrics_of(row) for step, row in history(file).items()} == logged(tmp_path / "run")
    kit.train(kit.config(), tmp_path / "off")
    assert kit.outcome(tmp_path / "run") == kit.outcome(tmp_path / "off")
    said = [line for line in console.lines if line.startswith("Weights & Biases")]
    assert said[0].startswith("Weights & Biases cannot be reached (") and "\n" not in said[0]
    identity = json.loads((tmp_path / "run" / "loggers.json").read_text())["id"]
    sync = f"wandb sync --id {identity} {file.parent}"
    assert said[1:] == [f"Weights & Biases is offline: `{sync}` sends this session later"]


def test_without_an_account_the_request_is_refused_at_once(tmp_path, kit, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    wandb.teardown()
    with pytest.raises(RequestError, match=r"needs an account: run `wandb login` first, or choose .*--no-wandb"):
        kit.train(kit.config(loggers__wandb={"enabled": True}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    settings = kit.config(loggers__wandb={"enabled": True, "mode": "offline"})
    assert kit.train(settings, tmp_path / "run").exit_status == 0


@pytest.mark.slow
def test_the_command_says_nothing_that_is_not_its_own(tmp_path, kit):
    """A whole process, its start and its end included."""
    settings = kit.config(loggers={"every_steps": 1, "console": "plain", "wandb": {"enabled": True}})
    (tmp_path / "c.yaml").write_text(config_yaml(settings))
    done = subprocess.run(
        [sys.executable, "-m", "minigpt", "train", tmp_path / "c.yaml", "--run-dir", tmp_path / "run"],
        capture_output=True, text=True, timeout=200, cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(minigpt.__file__).parents[1])},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    [line] = [line for line in done.stderr.splitlines() if "Weights" in line or "wandb" in line]
    assert line.startswith("Weights & Biases is offline: `wandb sync --id ")
    assert sessions(tmp_path / "run") and not (tmp_path / "wandb").exists()
