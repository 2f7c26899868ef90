"""Folders on disk: model folders, checkpoints, the cache, locks, and how they stay whole. Needs no torch to import."""

from minigpt.storage.atomic import (
    CorruptFolderError,
    atomic_folder,
    atomic_write,
    clean_stale,
    discard_folder,
    verify_folder,
)
from minigpt.storage.cache import cache_dir, cache_entry_lock
from minigpt.storage.checkpoint import (
    Checkpoint,
    best_checkpoint,
    clean_run,
    list_checkpoints,
    load_checkpoint,
    load_latest,
    newest_good,
    open_checkpoint,
    prune,
    save_checkpoint,
    save_sharded_checkpoint,
)
from minigpt.storage.lock import Lock, lock_folder, wait_lock
from minigpt.storage.model_folder import (
    build_model,
    load_model_config,
    load_state,
    require_trust,
    save_model,
    write_model,
)
from minigpt.storage.resolve import ModelFolder, resolve_model

__all__ = [
    "Checkpoint",
    "CorruptFolderError",
    "Lock",
    "ModelFolder",
    "atomic_folder",
    "atomic_write",
    "best_checkpoint",
    "build_model",
    "cache_dir",
    "cache_entry_lock",
    "clean_run",
    "clean_stale",
    "discard_folder",
    "list_checkpoints",
    "load_checkpoint",
    "load_latest",
    "load_model_config",
    "load_state",
    "lock_folder",
    "newest_good",
    "open_checkpoint",
    "prune",
    "require_trust",
    "resolve_model",
    "save_checkpoint",
    "save_model",
    "save_sharded_checkpoint",
    "verify_folder",
    "wait_lock",
    "write_model",
]
