"""Saving tensors that are spread over processes: each writes what it holds, all into one folder.

`torch.distributed.checkpoint` agrees on who writes what (of pieces that several hold, one does), tells every process of
an error in any of them, and calls the first process when all are done. Its own storages pickle the list of the pieces
to disk; here the files themselves say what they hold (see `tensor_files`), and are written piece by piece, so that
saving takes no memory beside the tensors.

The pieces of the model are put together to the one file that a model folder has; those of the optimizer stay.

Imports torch: the rest of storage imports this module only inside the functions that need it.
"""

import contextlib
import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult

from minigpt.config import WorkError
from minigpt.storage import fs
from minigpt.storage.atomic import atomic_folder, write_error
from minigpt.storage.model_folder import WEIGHTS_FILE
from minigpt.storage.parts import Part
from minigpt.storage.tensor_files import TYPES, Entry, TensorFiles, write_entries, write_whole

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

MODEL, OPTIMIZER = "model", "optimizer"

Held = Mapping[str, tuple[Part, Tensor]]
"""By name, what of each tensor this process holds."""


def save_sharded(
    final: Path,
    model: Held,
    optimizer: Held,
    group: "ProcessGroup",
    *,
    complete: Callable[[Path], None],
    kept: str | None = None,
) -> None:
    """Publish the folder `final` with the tensors of all processes of `group`, which must all call this.

    The model's tensors are in `model.safetensors` then, the optimizer's in `optimizer-00001-of-...`; the first process
    calls `complete` to write what else belongs into the folder. All tensors must be on the CPU.

    When it returns on any process, the folder is in place. Raises `WorkError`, the same on every process, if any of
    them could not do its share: `final` is as it was then. `kept` is what `atomic_folder` says of that.
    """
    try:
        with contextlib.ExitStack() as stack:
            folder = partial(atomic_folder, final, replace=True, kept=kept)
            writer = _Writer(lambda: stack.enter_context(folder()), stack.close, complete, group)
            save({**model, **optimizer}, storage_writer=writer, planner=_Planner(set(model)), process_group=group)
    except CheckpointException as error:
        raise _one_error(error, final, kept) from error


class _Planner(DefaultSavePlanner):
    """What this process could write: the boxes of its parts. PyTorch's own knows only one box of a tensor."""

    state_dict: dict[str, Any]

    def __init__(self, model: set[str]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self.model = model

    def create_local_plan(self) -> SavePlan:
        """Everything that this process has."""
        items = []
        for name, (part, tensor) in self.state_dict.items():
            for box in part.boxes:
                data = TensorWriteData(
                    chunk=ChunkStorageMetadata(torch.Size(box.offset), torch.Size(box.size)),
                    properties=TensorProperties(dtype=tensor.dtype),
                    size=torch.Size(part.shape),
                )
                items.append(WriteItem(MetadataIndex(name, box.offset), WriteItemType.SHARD, tensor_data=data))
        self.plan = SavePlan(items, planner_data=self.model)
        return self.plan

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        """The values of a box."""
        part, tensor = self.state_dict[write_item.index.fqn]
        box = next(box for box in part.boxes if box.offset == tuple(write_item.index.offset or ()))
        piece: Tensor = tensor.detach()[tuple(slice(a, a + n) for a, n in zip(box.at, box.size, strict=True))]
        return piece.contiguous()


class _Writer(StorageWriter):
    """Writes safetensors files into a folder that the first process makes and the others are told of."""

    def __init__(
        self,
        make_folder: Callable[[], Path],
        publish: Callable[[], None],
        complete: Callable[[Path], None],
        group: "ProcessGroup",
    ) -> None:
        self.make_folder, self.publish, self.complete = make_folder, publish, complete
        self.process = group.rank()
        self.folder = Path()

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """On the first process: who writes which files, and where."""
        self.folder = self.make_folder()
        files = [_files(plan) for plan in plans]
        count = Counter(kind for mine in files for kind, _ in mine)
        number: Counter[str] = Counter()
        new_plans = []
        for plan, mine in zip(plans, files, strict=True):
            named = []
            for kind, places in mine:
                number[kind] += 1
                named.append((f"{kind}-{number[kind]:05d}-of-{count[kind]:05d}.safetensors", places))
            new_plans.append(dataclasses.replace(plan, storage_data=(self.folder, named)))
        return new_plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> torch.futures.Future[list[WriteResult]]:
        """On each process: its files."""
        self.folder, files = plan.storage_data
        if not self.folder.is_dir():
            raise WorkError(
                f"process {self.process} does not see {self.folder}, which process 0 made: put the run folder on a "
                "file system that all machines share"
            )
        for name, places in files:
            entries = {plan.items[i].index.fqn: _entry(plan.items[i], planner) for i in places}
            write_entries(self.folder / name, entries)
            fs.sync_file(self.folder / name)
        done: torch.futures.Future[list[WriteResult]] = torch.futures.Future()
        done.set_result([])
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """On the first process, when all have written: the rest of the folder, and its publication."""
        shards = sorted(self.folder.glob(f"{MODEL}-*.safetensors"))
        write_whole(self.folder / WEIGHTS_FILE, TensorFiles(shards))
        for shard in shards:
            fs.remove_file(shard)
        self.complete(self.folder)
        self.publish()

    # What PyTorch asks of every storage, and this one has no need of.

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        pass

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        pass

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True


def _files(plan: SavePlan) -> list[tuple[str, list[int]]]:
    """Spread a process's pieces (by their places in the plan) over files: of a tensor no file holds two."""
    found: list[tuple[str, list[int]]] = []
    for kind in (MODEL, OPTIMIZER):
        layers: list[list[int]] = []  # the first pieces of all tensors, the second ones, ...
        seen: Counter[str] = Counter()
        for i, item in enumerate(plan.items):
            if (item.index.fqn in plan.planner_data) == (kind == MODEL):
                number = seen[item.index.fqn]
                seen[item.index.fqn] += 1
                if number == len(layers):
                    layers.append([])
                layers[number].append(i)
        found += [(kind, places) for places in layers]
    return found


def _entry(item: WriteItem, planner: Any) -> Entry:
    data = item.tensor_data
    assert data is not None
    place, kind = data.chunk, _KINDS[data.properties.dtype]
    return Entry(kind, tuple(place.sizes), partial(planner.resolve_data, item), tuple(place.offsets))


_KINDS = {dtype: kind for kind, dtype in TYPES.items()}


def _one_error(error: CheckpointException, final: Path, kept: str | None) -> BaseException:
    """The sentence for what went wrong, the same on every process: the first one's."""
    process, (first, _) = min(error.failures.items())
    if isinstance(first, OSError):
        return WorkError(f"process {process} {write_error(final, first, kept)}")
    return first
