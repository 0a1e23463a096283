"""The tokens around a turn: which one ends it, which are special, and which may stand for padding."""

from collections.abc import Sequence

from lightning.pytorch.utilities import rank_zero_warn
from transformers import PreTrainedTokenizerBase

from ser_lightning.data.encode import encode_conversations
from ser_lightning.errors import UserError
from ser_lightning.records import Turn

MAX_UNKNOWN = 0.03
"""Share of characters beyond which a model reads too little of its data."""
MAX_TEXTS, MAX_LOOKED_AT = 200, 2000
"""Texts that are looked at, and characters of each."""


def question() -> list[Turn]:
    """A prompt that every template should take."""
    return [Turn(role="user", content="Why?")]


def conversation_ids(tokenizer: PreTrainedTokenizerBase, answer: str = "So.") -> list[int]:
    """Ids of a question and its answer; `UserError` if the template refuses them."""
    [ids] = encode_conversations(tokenizer, [[*question(), Turn(role="assistant", content=answer)]])
    return ids


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Tokens that no text is made of."""
    return {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}


def closing_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token with which the template ends a response, EOS or another; None where it ends with ordinary text.

    Base models often come with a template that ends turns with a token that is not their EOS.
    """
    one, other = (conversation_ids(tokenizer, answer)[::-1] for answer in ("So.", "No!"))
    num_shared = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), 0)
    # After the token there may be a line break.
    closing = one[:num_shared][::-1]
    return next((token for token in closing if token in special_ids(tokenizer)), None)


def check_is_whole(tokenizer: PreTrainedTokenizerBase) -> None:
    """`UserError` for the empty tokenizer that transformers makes where a folder has a model and no tokenizer."""
    ordinary = tokenizer.get_vocab().keys() - tokenizer.convert_ids_to_tokens(sorted(special_ids(tokenizer)))
    if not any(character.isalnum() for token in ordinary for character in token):
        raise UserError(
            f"tokenizer: got {len(tokenizer)} tokens, none of which is text, from {tokenizer.name_or_path}; put the "
            "tokenizer.json and the tokenizer_config.json of the model into its folder"
        )


def unknown_share(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> tuple[float, str]:
    """Share of the characters of texts that no token stands for, and one of them; white space does not count.

    Slow tokenizers do not say what a token stands for: there it is the share of unknown tokens, without an example.
    """
    unk = tokenizer.unk_token_id
    if not tokenizer.is_fast:
        ids = [token for text in texts for token in tokenizer(text, add_special_tokens=False).input_ids]
        return ids.count(unk) / max(1, len(ids)), ""
    total, unknown = 0, ""
    for text in texts:
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        left = list(text)
        for token, (start, end) in zip(encoded.input_ids, encoded.offset_mapping, strict=True):
            if token != unk:
                left[start:end] = " " * (end - start)
        total += len("".join(text.split()))
        unknown += "".join("".join(left).split())
    return len(unknown) / max(1, total), unknown[:1]


def warn_of_unknown(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], where: str) -> None:
    """Warn where more than a few percent of texts are unknown to the tokenizer.

    Args:
        texts: the first of the data.
    """
    share, example = unknown_share(tokenizer, [text[:MAX_LOOKED_AT] for text in texts[:MAX_TEXTS]])
    if share > MAX_UNKNOWN:
        rank_zero_warn(
            f"{where}: {share:.0%} of the characters of the first {min(len(texts), MAX_TEXTS)} texts, such as "
            f"{example!r}, are unknown to the tokenizer; is it the model's own, and made for this language?"
        )


def choose_pad(tokenizer: PreTrainedTokenizerBase) -> None:
    """Set a pad token where there is none but EOS, one that is no part of a text.

    Raises:
        UserError: there is neither EOS nor pad.
    """
    eos = tokenizer.eos_token
    if tokenizer.pad_token is not None and tokenizer.pad_token != eos:
        return
    if eos is None and tokenizer.pad_token is None:
        raise UserError(
            f"backbone.path: got a tokenizer without EOS and pad ({tokenizer.name_or_path}); add them to it"
        )
    named = [t for t in tokenizer.get_added_vocab() if "pad" in t.lower() or "reserved" in t.lower()]
    spare = [t for t in (tokenizer.unk_token, *named) if t not in (None, eos, tokenizer.bos_token)]
    tokenizer.pad_token = spare[0] if spare else eos


def move_pad(tokenizer: PreTrainedTokenizerBase) -> None:
    """Set another pad token where it is what the chat template ends conversations with, if there is another.

    Plain transformers reads a reward before the first trailing pad, whatever the attention mask says.
    """
    ids = conversation_ids(tokenizer)
    if tokenizer.pad_token_id != ids[-1]:
        return
    others = [token for token in tokenizer.get_added_vocab().values() if token not in ids]
    if spare := [token for token in (*others, tokenizer.bos_token_id) if token not in (None, ids[-1])]:
        tokenizer.pad_token_id = spare[0]
