"""The tiny policy's vocabulary: a byte-level BPE of a catalogue, with one token for each mark of an answer's format.

An answer of five words costs about a dozen tokens: `<answer>["`, word, `","`, word, …, `"]</answer>`. Every word has
the same leading blank in a prompt, after a quotation mark and after a comma. Copying a word therefore copies its
tokens. The decoder removes that blank inside the quotation marks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from learner.selecting import Selector
from streams.pointers import pointer

PAD = "<pad>"
TAGS = ("<query>", "<terms>", "<attributes>", "<neighbours>", "<title>")
"""The tags that open a prompt's parts. `learner.prompts` removes angle brackets from untrusted text against forgery."""
OPEN, SEPARATOR, CLOSE, EMPTY = '<answer>["', '","', '"]</answer>', "<answer>[]</answer>"
STOPS = (CLOSE, EMPTY)
"""Either token ends an answer, so no further end token is needed."""
VALUES, END = "<values>", "<end>"
"""The tag that opens a product's values in a prompt, and the token that ends a selector's answer."""


def render_pointers(numbers: Sequence[int]) -> str:
    """Return a selector's answer that points to the values with these numbers in its prompt, counted from 1."""
    return "".join(map(pointer, numbers)) + END


def build_tokenizer(texts: Iterable[str], *, vocabulary_size: int, pointers: int = 0) -> Any:
    """Return a `PreTrainedTokenizerFast` with BPE merges learned from `texts`, most frequent first.

    texts: any iterable of catalogue text; read once. The same texts in the same order give the same vocabulary.
    vocabulary_size: the number of all tokens, including the 256 bytes and the added ones; small corpora may give fewer.
    pointers: for a selector, the number of values that a prompt may show; 0 for a policy that writes text.
    Text is lower-cased and NFKC-normalized. The index does both, so the policy loses nothing that retrieval keeps.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    added = [PAD, *TAGS, OPEN, SEPARATOR, CLOSE, EMPTY]
    if pointers:
        added += [VALUES, END, *map(pointer, range(1, pointers + 1))]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    # Blanks beside an answer's punctuation come from the prefix space, never from the policy: drop them.
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteLevel(), decoders.Fuse(), decoders.Replace(Regex('(?<=") | (?=")'), "")]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size - len(added),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in added])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, clean_up_tokenization_spaces=False, model_max_length=512
    )


def opener_ids(tokenizer: Any) -> frozenset[int]:
    """Return the tokens that open an expansion: those ending in `["`, `","` or `, "`, and a lone quotation mark.

    A vocabulary that was not made here may spell `","` as two tokens or as one. Its lone `"` also closes an expansion.
    Only a comma or a bracket follows there, so the rule counts it as a beginning that never recurs.
    """
    if SEPARATOR in tokenizer.get_added_vocab():
        return frozenset(tokenizer.convert_tokens_to_ids(text) for text in (OPEN, SEPARATOR))
    spelled = {ids: tokenizer.decode([ids]) for token, ids in tokenizer.get_vocab().items() if token.endswith('"')}
    return frozenset(ids for ids, text in spelled.items() if text.strip() == '"' or text.endswith(('["', ',"', ', "')))


def selector_of(tokenizer: Any) -> Selector | None:
    """Return the tokens of a selector's answers, or None if this vocabulary has no pointers."""
    added = tokenizer.get_added_vocab()
    if END not in added:
        return None
    numbers = range(1, sum(token.startswith("<v") and token[2:-1].isdigit() for token in added) + 1)
    return Selector(pointer_ids=tuple(added[pointer(number)] for number in numbers), end_id=added[END])
