"""Text to token ids and back: characters, BPE, SentencePiece, tiktoken's and llama2.c's files, any tokenizer.json.

Needs no torch.
"""

from minigpt.tokenizer.bpe import train_bpe
from minigpt.tokenizer.char import CharTokenizer
from minigpt.tokenizer.gpt2 import load_gpt2
from minigpt.tokenizer.huggingface import HuggingFaceTokenizer
from minigpt.tokenizer.llama2c import load_llama2c
from minigpt.tokenizer.load import build_tokenizer, load_tokenizer
from minigpt.tokenizer.protocol import Tokenizer
from minigpt.tokenizer.sentencepiece import load_sentencepiece
from minigpt.tokenizer.sentencepiece_training import train_sentencepiece

__all__ = [
    "CharTokenizer",
    "HuggingFaceTokenizer",
    "Tokenizer",
    "build_tokenizer",
    "load_gpt2",
    "load_llama2c",
    "load_sentencepiece",
    "load_tokenizer",
    "train_bpe",
    "train_sentencepiece",
]
