"""From sources of text to rows of token ids: reading, splitting, tokenizing once, the order of windows, prefetching.

Needs no torch: rows are numpy arrays.
"""

from minigpt.data.dataset import TokenDataset
from minigpt.data.download import Progress
from minigpt.data.order import WindowOrder
from minigpt.data.out import require_new_folder, write_folders
from minigpt.data.own import DataSource, settled_sources
from minigpt.data.prefetch import Prefetcher
from minigpt.data.prepare import prepare, prepare_part
from minigpt.data.prepared import PreparedData, PreparedSource
from minigpt.data.show import describe
from minigpt.data.sources import is_token_source, read_documents
from minigpt.data.splits import SEPARATOR, iter_training_text, require_text
from minigpt.data.unit import Part

__all__ = [
    "SEPARATOR",
    "DataSource",
    "Part",
    "Prefetcher",
    "PreparedData",
    "PreparedSource",
    "Progress",
    "TokenDataset",
    "WindowOrder",
    "describe",
    "is_token_source",
    "iter_training_text",
    "prepare",
    "prepare_part",
    "read_documents",
    "require_new_folder",
    "require_text",
    "settled_sources",
    "write_folders",
]
