"""From sources of text to rows of token ids: reading, splitting, tokenizing once, the order of windows, prefetching.

Needs no torch: rows are numpy arrays.
"""

from minigpt.data.dataset import TokenDataset
from minigpt.data.download import Progress
from minigpt.data.order import WindowOrder
from minigpt.data.own import DataSource, settled_sources
from minigpt.data.prefetch import Prefetcher
from minigpt.data.prepare import PreparedData, prepare
from minigpt.data.show import describe
from minigpt.data.sources import is_token_source, read_documents
from minigpt.data.splits import SEPARATOR, iter_training_text

__all__ = [
    "SEPARATOR",
    "DataSource",
    "Prefetcher",
    "PreparedData",
    "Progress",
    "TokenDataset",
    "WindowOrder",
    "describe",
    "is_token_source",
    "iter_training_text",
    "prepare",
    "read_documents",
    "settled_sources",
]
