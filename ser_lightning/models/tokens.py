"""The tokens around a turn: which one ends it, which are special, and which may stand for padding."""

from transformers import PreTrainedTokenizerBase

from ser_lightning.data.encode import encode_conversations
from ser_lightning.errors import UserError
from ser_lightning.records import Turn


def question() -> list[Turn]:
    """A prompt that every template should take."""
    return [Turn(role="user", content="Why?")]


def conversation_ids(tokenizer: PreTrainedTokenizerBase, answer: str = "So.") -> list[int]:
    """Ids of a question and its answer.

    Raises:
        UserError: the template refuses them.
    """
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
    # Behind the token there may be a line break.
    closing = one[:num_shared][::-1]
    return next((token for token in closing if token in special_ids(tokenizer)), None)


def check_is_whole(tokenizer: PreTrainedTokenizerBase) -> None:
    """`UserError` for the empty tokenizer that transformers makes where a folder has a model and no tokenizer."""
    ordinary = tokenizer.get_vocab().keys() - tokenizer.convert_ids_to_tokens(sorted(special_ids(tokenizer)))
    if not any(character.isalnum() for token in ordinary for character in token):
        raise UserError(
            f"backbone.path: got a folder without its tokenizer ({tokenizer.name_or_path}): {len(tokenizer)} tokens, "
            "none of which is text; put tokenizer.json and tokenizer_config.json of the model into it"
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
