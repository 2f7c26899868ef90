"""GGUF files come in: the same model, and its tokenizer where it can be one of ours."""

import pytest
from gguf_models import TEXT, random_model, tokenizer

pytest.importorskip("gguf")

from test_gguf_files import exported

from minigpt.config import RequestError
from minigpt.inference import load
from minigpt.interop import import_model
from minigpt.interop.gguf.rebuilding import rebuilt_tokenizer
from minigpt.interop.gguf.tokens import vocabulary
from minigpt.interop.meaning import differences
from minigpt.tokenizer import train_bpe


def test_import_gives_the_model_and_its_tokenizer_back(tmp_path):
    for pattern in ("gpt2", "llama3"):
        tok = train_bpe([TEXT * 20], 297, pattern, ("<|endoftext|>", "<|user|>"))
        model, path, _ = exported(tmp_path / pattern, {}, tok=tok)
        import_model(path, tmp_path / f"{pattern} model")
        again = load(tmp_path / f"{pattern} model", device="cpu")
        assert not differences(model.config, again.config)
        for name, tensor in model.state_dict().items():
            assert again.model.state_dict()[name].equal(tensor)
        assert again.tokenizer.special_tokens == tok.special_tokens and again.tokenizer.eot_id == tok.eot_id
        assert [again.tokenizer.token_bytes(i) for i in range(297)] == [tok.token_bytes(i) for i in range(297)]
        for text in (TEXT, "x<|user|>y<|endoftext|>", "a  \n 123456'LL é"):
            assert again.tokenizer.encode(text) == tok.encode(text)
            assert again.tokenizer.encode(text, allow_special=True) == tok.encode(text, allow_special=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.ggml.model": "t5"}, "GGUF's tokenizer 't5' cannot be taken over"),
        ({"tokenizer.ggml.pre": "tekken"}, "splitting rule 'tekken' is not known here"),
        ({"tokenizer.ggml.token_type": [1]}, "is damaged"),
        ({"tokenizer.ggml.merges": ["q zz"]}, "cannot be used"),
    ],
)
def test_tokenizers_of_files_that_cannot_be_ours(change, message):
    keys = vocabulary(tokenizer(), random_model({}).config).keys
    with pytest.raises(RequestError, match=message):
        rebuilt_tokenizer({**keys, **change})
