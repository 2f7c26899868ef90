"""Which checkpoint a run goes on from, and whether it may: the keys that shape its trajectory must be unchanged."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from minigpt.config import Config, RequestError, config_yaml, load_config, resolved
from minigpt.config.extension import portable
from minigpt.config.yaml import show
from minigpt.data.rows.names import source_names
from minigpt.parallel.agreement import everywhere, on_main
from minigpt.parallel.world import World
from minigpt.storage import (
    Checkpoint,
    atomic_write,
    discard_folder,
    list_checkpoints,
    load_latest,
    open_checkpoint,
)
from minigpt.training.journal import RowJournal

# Looking at a run, and saving it, never changes it. The text's own fingerprint is compared instead of where it lies.
FREE = (
    "run.name",
    "data.train",
    "data.val",
    "data.workers",
    "data.store_cache_gb",
    "data.shard_tokens",
    "data.max_epochs",
)
FREE_SECTIONS = ("evaluation.", "checkpoint.", "loggers.", "callbacks.", "distributed.")
OWN = "callbacks.own"  # unlike the package's, these may do anything

HARDWARE = ("run.device", "run.threads")
MICRO_BATCH = "training.micro_batch"

CONFIG_FILE = "config.yaml"


def agreed(world: World, find: Callable[[], Checkpoint | None]) -> Checkpoint | None:
    """The checkpoint that the main process finds and verifies, on every process. They must all call it.

    Raises on every process the RequestError or WorkError of the main one, or of one that cannot open what was found.
    """
    if world.size == 1:
        return find()

    def path() -> Path | None:
        found = find()
        return None if found is None else found.path

    chosen = on_main(world, path)
    return everywhere(world, lambda: None if chosen is None else open_checkpoint(chosen))


def newest_on_path(
    run_dir: Path, journal: RowJournal, say: Callable[[str], None], world: World | None = None
) -> Checkpoint | None:
    """The newest good checkpoint that no restoration has gone back behind; on several processes see `agreed`."""

    def accept(step: int, state: dict[str, Any]) -> bool:
        return journal.admits(step, state["restorations"])

    return agreed(world or World(), lambda: load_latest(run_dir, say, accept=accept))


def last_good_before(
    run_dir: Path, first_bad: int, journal: RowJournal, say: Callable[[str], None], world: World | None = None
) -> Checkpoint | None:
    """The newest good checkpoint from before a series of bad steps; on several processes see `agreed`."""

    def accept(step: int, state: dict[str, Any]) -> bool:
        return step < first_bad and state["bad_streak"] == 0 and journal.admits(step, state["restorations"])

    return agreed(world or World(), lambda: load_latest(run_dir, say, accept=accept))


def discard_later(run_dir: Path, step: int) -> None:
    """Delete the checkpoints after `step`: the run has gone back behind them."""
    for folder in list_checkpoints(run_dir):
        if int(folder.name.removeprefix("step-")) > step:
            discard_folder(folder)


def flat(config: Config) -> dict[str, Any]:
    """Every key that has an effect, with dotted names."""
    found: dict[str, Any] = {}

    def walk(tree: dict[str, Any], prefix: str) -> None:
        for key, value in tree.items():
            if isinstance(value, dict):
                walk(value, f"{prefix}{key}.")
            else:
                found[prefix + key] = value

    walk(portable(resolved(config)), "")
    if config.data.is_mixture:
        found["the mixture of data.train"] = _mixture(config)
    return found


def _mixture(config: Config) -> str:
    """What of `data.train` shapes the trajectory beside the text, where that is a mixture: names, weights, places."""
    sources = config.data.train or []
    sizes = [_plain(s.weight) if s.weight else f"{_plain(s.repeat or 1.0)} of its size" for s in sources]
    return ", ".join(f"{name}: {size}" for name, size in zip(source_names(sources), sizes, strict=True))


def _plain(number: float) -> str:
    """A number to its last digit."""
    return str(number).removesuffix(".0")


def read_config(run_dir: Path) -> Config | None:
    """The resolved config of a run folder; None if there is none yet."""
    path = run_dir / CONFIG_FILE
    return load_config(path)[0] if path.exists() else None


def write_config(run_dir: Path, config: Config) -> None:
    """Keep the resolved config: the file that repeats the run."""
    atomic_write(
        run_dir / CONFIG_FILE,
        "# The resolved config: `minigpt train` on this file repeats the run.\n" + config_yaml(config),
    )


def refuse_changes(run_dir: Path, saved: Config, wanted: Config, say: Callable[[str], None]) -> None:
    """Raises RequestError naming the keys that shape the trajectory and differ.

    Another micro-batch is said, and allowed where only the order of sums depends on it: another number of processes
    may need it.
    """
    old, new = flat(saved), flat(wanted)
    keys = [key for key in dict.fromkeys([*old, *new]) if old.get(key) != new.get(key)]
    keys = [key for key in keys if key == OWN or (key not in FREE and not key.startswith(FREE_SECTIONS))]
    keys = [key for key in keys if key not in HARDWARE or not _same_hardware(old.get(key), new.get(key))]
    if MICRO_BATCH in keys and _only_sums(wanted):
        keys.remove(MICRO_BATCH)
        change = _change(MICRO_BATCH, old.get(MICRO_BATCH), new.get(MICRO_BATCH))
        say(f"{change}, which changes no more than the order of sums")
    if keys:
        changes = ", ".join(_change(key, old.get(key), new.get(key)) for key in keys)
        raise RequestError(
            f"run folder {run_dir} holds a run of another config ({changes}): "
            "go on with its own, or choose another --run-dir or run.name"
        )


def _same_hardware(old: Any, new: Any) -> bool:
    """Whether it is left open (by several processes, each of which has its own), or another GPU of the same kind."""
    return old is None or new is None or str(old).partition(":")[0] == str(new).partition(":")[0]


def _only_sums(config: Config) -> bool:
    """Whether nothing is drawn for, or averaged over, a micro-batch as such."""
    moe = config.model.moe
    averaged = moe.n_expert and (moe.balance == "loss" or moe.z_loss_weight)
    return config.model.dropout == 0 and not averaged and config.schedule.accumulation is None


def _change(key: str, old: Any, new: Any) -> str:
    """What is different, in words. Of a class of the user's own it may be the file itself."""
    if key.endswith(".sha256") and old and new:
        return f"the file of {key.removesuffix('.sha256')} has changed since"
    if key == OWN and old and new and _without_hashes(old) == _without_hashes(new):
        files = [one["kind"].partition(":")[0] for one, other in zip(old, new, strict=True) if one != other]
        return f"{' and '.join(files)} of {key} has changed since"
    before, now = (show(value) if value is None or isinstance(value, bool) else value for value in (old, new))
    return f"{key} was {before} and is now {now}"


def _without_hashes(extensions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in one.items() if name != "sha256"} for one in extensions]
