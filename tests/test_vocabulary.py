"""Vocabularies: what text becomes, and comes back from."""

import json
import sys

import numpy as np
import pytest

from jaxlocal.data.vocabulary import Bytes, Characters, Tokens

SAID = "To be, or not to be: that is the question — ünd 問?\n" * 20


def tokenizer_of(said: str = SAID, size: int = 280) -> str:
    """The file of a tokenizer that was trained on a text, as GPT-2's: pairs of bytes, and a token for the end."""
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([said], trainer)
    return tokenizer.to_str()


@pytest.mark.parametrize("kind", ["character", "byte", "token"])
def test_text_comes_back(kind):
    vocabulary = {
        "character": lambda: Characters.of(SAID),
        "byte": Bytes,
        "token": lambda: Tokens(tokenizer_of()),
    }[kind]()
    text = "not ü問 to\nbe"
    tokens = vocabulary.encode(text)
    assert (vocabulary.unit, tokens.dtype, tokens.ndim) == (kind, np.int32, 1)
    assert 0 <= tokens.min() <= tokens.max() < vocabulary.size
    assert vocabulary.decode(tokens) == text
    assert vocabulary.encode("").shape == (0,)
    assert type(vocabulary)(vocabulary.content) == vocabulary  # all of it is there
    for strange in (-1, vocabulary.size):
        with pytest.raises(ValueError, match=f"token {strange} is none of the vocabulary, which has"):
            vocabulary.decode(np.array([0, strange]))


def test_bytes_are_those_of_the_text():
    np.testing.assert_array_equal(Bytes().encode("aü"), [97, 195, 188])
    assert Bytes().decode(np.array([97, 195])) == "a\ufffd"  # cut within a character


@pytest.mark.parametrize("content", ["ba", "aa"])
def test_characters_that_make_no_vocabulary(content):
    with pytest.raises(ValueError, match="sorted, each once"):
        Characters(content)
    with pytest.raises(ValueError, match="no content"):
        Bytes(content)


def test_tokens_are_the_tokenizers():
    tokenizers = pytest.importorskip("tokenizers")
    content = tokenizer_of()
    own, vocabulary = tokenizers.Tokenizer.from_str(content), Tokens(content)
    assert vocabulary.size == own.get_vocab_size() == 280
    assert vocabulary.encode(SAID).tolist() == own.encode(SAID).ids
    assert len(vocabulary.encode(SAID)) < len(SAID)
    ended = vocabulary.encode("be<|endoftext|>to")
    assert vocabulary.encode("<|endoftext|>").tolist() == [0]
    assert vocabulary.decode(ended) == "be<|endoftext|>to"


def test_a_text_is_neither_cut_nor_filled_nor_framed():
    """A tokenizer's file may ask for all of it, for single sentences."""
    tokenizers = pytest.importorskip("tokenizers")
    own = tokenizers.Tokenizer.from_str(tokenizer_of())
    own.enable_truncation(8)
    own.enable_padding(length=1000)
    own.post_processor = tokenizers.processors.TemplateProcessing("<|endoftext|> $A", None, [("<|endoftext|>", 0)])
    assert len(own.encode(SAID).ids) == 1000
    assert Tokens(own.to_str()).decode(Tokens(own.to_str()).encode(SAID)) == SAID


def words(**vocabulary: int) -> str:
    """A tokenizer of whole words, none of which stands for what it does not know."""
    return json.dumps({"model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "?"}})


def test_what_a_tokenizer_does_not_know_is_one_line():
    pytest.importorskip("tokenizers")
    vocabulary = Tokens(words(to=0, be=4))
    assert vocabulary.size == 5
    with pytest.raises(ValueError, match="cannot encode the text: WordLevel error"):
        vocabulary.encode("or")
    with pytest.raises(ValueError, match="the tokenizer has no token 2"):
        vocabulary.decode(np.array([0, 2]))


def test_tokens_without_a_tokenizer():
    assert Tokens().size == 0
    for use in (lambda: Tokens().encode("a"), lambda: Tokens().decode(np.array([1]))):
        with pytest.raises(ValueError, match=r"came without a tokenizer: give the tokenizer\.json that made them"):
            use()


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ValueError, match=r"needs a package: pip install 'jaxlocal\[text\]'"):
        Tokens("{}").encode("a")


def test_a_damaged_tokenizer_is_one_line():
    whole = tokenizer_of()
    rng = np.random.default_rng(0)
    contents = ["{", "[]", "{}", "null", "\0", *(whole[:n] for n in rng.integers(1, len(whole), 30))]
    for _ in range(200):  # a byte that is another
        at = rng.integers(len(whole))
        contents.append(whole[:at] + chr(rng.integers(32, 127)) + whole[at + 1 :])
    said = set()
    for content in contents:
        try:
            vocabulary = Tokens(content)
            assert vocabulary.encode("to be").max(initial=0) < vocabulary.size
        except ValueError as error:
            said.add(str(error))
    assert len(said) > 10
    assert not any("\n" in line for line in said)
