"""The token before every text: it goes along into every format and back, and none comes with a tokenizer alone."""

import json
from pathlib import Path

import pytest
from gguf_models import TEXT, random_model, tokenizer

from minigpt.inference import load
from minigpt.interop import import_model
from minigpt.interop.begin import begin_ids, with_begin
from minigpt.interop.exporting import ExportSource, export_model, open_source
from minigpt.storage import save_model
from minigpt.tokenizer import HuggingFaceTokenizer, load_tokenizer


def plain() -> dict:
    """The tokenizer.json of a BPE of ours."""
    return json.loads(tokenizer()._json)


@pytest.mark.parametrize("first", [None, {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False}])
def test_a_tokenizer_json_gets_it_and_loses_it(first: dict | None):
    tokenizers = pytest.importorskip("tokenizers")
    before = {**plain(), "post_processor": first}
    content = with_begin(before, {"<|endoftext|>": 299})
    backend = tokenizers.Tokenizer.from_str(json.dumps(content))
    ids = tokenizer().encode(TEXT)
    assert backend.encode(TEXT).ids == [299, *ids] and backend.encode("a", "b").ids[0] == 299
    assert backend.encode(TEXT, add_special_tokens=False).ids == ids
    assert with_begin(content, {"<|endoftext|>": 299}) == content
    without = tokenizers.Tokenizer.from_str(json.dumps(with_begin(content, {})))
    assert without.encode(TEXT).ids == ids


@pytest.mark.parametrize("begins", [True, False])
def test_it_goes_through_gguf_and_hugging_face_folders(begins: bool, tmp_path: Path):
    """Also where the tokenizer itself says otherwise: what counts is what the model knows."""
    gguf = pytest.importorskip("gguf")
    tokenizers = pytest.importorskip("tokenizers")
    otherwise = with_begin(plain(), {} if begins else {"<|endoftext|>": 299})
    words = HuggingFaceTokenizer(tokenizers.Tokenizer.from_str(json.dumps(otherwise)))
    begin = (299,) if begins else ()
    model = random_model({"n_layer": 1})
    save_model(tmp_path / "ours", model.config, model.state_dict(), words, extra={"begin_ids": list(begin)})
    expected = load(tmp_path / "ours", device="cpu").encode(TEXT)
    assert expected == [*begin, *words.encode(TEXT)]
    for format in ("gguf", "hf"):
        source = open_source(str(tmp_path / "ours"))
        assert source.begin == begin
        out = export_model(source, tmp_path / format, format)
        if format == "gguf":
            assert gguf.GGUFReader(out).fields["tokenizer.ggml.add_bos_token"].contents() is begins
        else:
            backend = tokenizers.Tokenizer.from_file(str(out / "tokenizer.json"))
            assert backend.encode(TEXT).ids == expected
        import_model(out, tmp_path / f"{format} back")
        assert load(tmp_path / f"{format} back", device="cpu").encode(TEXT) == expected
        again = export_model(open_source(str(tmp_path / f"{format} back")), tmp_path / f"{format} again", "hf")
        backend = tokenizers.Tokenizer.from_file(str(again / "tokenizer.json"))
        assert backend.encode(TEXT).ids == expected


@pytest.mark.parametrize(
    ("settings", "begin"),
    [
        ({"add_bos_token": True}, (1,)),
        ({"tokenizer_class": "LlamaTokenizer"}, (1,)),
        ({"tokenizer_class": "LlamaTokenizer", "add_bos_token": False}, ()),
        ({"tokenizer_class": "T5Tokenizer"}, ()),
        ([], ()),
    ],
)
def test_of_folders_with_a_sentencepiece_model_alone(settings: object, begin: tuple[int, ...], tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "bos_token_id": 1}))
    (tmp_path / "tokenizer.model").write_bytes(b"")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert begin_ids(tmp_path) == begin


def test_gguf_files_that_do_not_say():
    pytest.importorskip("gguf")
    from minigpt.interop.gguf.rebuilding import begin_of

    model, rule, add, bos = (f"tokenizer.ggml.{name}" for name in ("model", "pre", "add_bos_token", "bos_token_id"))
    assert begin_of({model: "llama"}) == (1,) == begin_of({model: "llama", bos: 1, add: True})
    assert begin_of({model: "gpt2", rule: "llama-bpe", bos: 7}) == (7,)
    assert begin_of({model: "gpt2", rule: "qwen2", bos: 7}) == () == begin_of({model: "llama", add: False})
    assert begin_of({model: "gpt2", rule: "qwen2", bos: 7, add: True}) == (7,)


def test_several_tokens_cannot_be_in_gguf(tmp_path: Path):
    pytest.importorskip("gguf")
    from minigpt.config import RequestError

    model = random_model({"n_layer": 1})
    source = ExportSource(tmp_path, model.config, load_tokenizer(_saved(tmp_path)), lambda: model, begin=(5, 6))
    with pytest.raises(RequestError, match="2 tokens stand before every text"):
        export_model(source, tmp_path / "out", "gguf")


def _saved(folder: Path) -> Path:
    tokenizer().save(folder)
    return folder
