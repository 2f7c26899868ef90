"""Text to token ids and back: characters, BPE trained here, GPT-2's own, any tokenizer.json. Needs no torch."""

from minigpt.tokenizer.bpe import train_bpe
from minigpt.tokenizer.char import CharTokenizer
from minigpt.tokenizer.gpt2 import load_gpt2
from minigpt.tokenizer.huggingface import HuggingFaceTokenizer
from minigpt.tokenizer.load import build_tokenizer, load_tokenizer
from minigpt.tokenizer.protocol import Tokenizer

__all__ = [
    "CharTokenizer",
    "HuggingFaceTokenizer",
    "Tokenizer",
    "build_tokenizer",
    "load_gpt2",
    "load_tokenizer",
    "train_bpe",
]
