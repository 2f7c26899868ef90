"""From sources of text to rows of token ids: reading, splitting, tokenizing once, the order of windows, prefetching.

Needs no torch: rows are numpy arrays.
"""

from minigpt.data.dataset import TokenDataset
from minigpt.data.prefetch import Prefetcher
from minigpt.data.prepared import PreparedData, PreparedSource
from minigpt.data.preparing.out import require_new_folder, write_folders
from minigpt.data.preparing.prepare import prepare, prepare_part
from minigpt.data.preparing.splits import SEPARATOR, iter_training_text, require_text
from minigpt.data.preparing.unit import Part
from minigpt.data.reading.download import Progress
from minigpt.data.reading.own import DataSource, settled_sources
from minigpt.data.reading.sources import is_token_source, read_documents
from minigpt.data.rows.order import WindowOrder
from minigpt.data.showing.show import describe

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
