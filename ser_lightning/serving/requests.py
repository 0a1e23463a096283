"""What clients send, in the shape of each of them: our own, OpenRLHF's, vLLM's and text-embeddings-inference's.

The shapes of others ignore what they send besides; in ours an unknown key is an error. Texts and turns are read by the
`Scorer`, with its messages.
"""

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ser_lightning.errors import UserError

Rows = tuple[list[Any], list[Any]]
"""N prompts and N responses."""


class ScoreRequest(BaseModel):
    """Ours: prompts with a response each, or whole conversations."""

    model_config = ConfigDict(extra="forbid")

    prompts: list[Any] | None = Field(None, description="texts, or conversations as lists of turns")
    responses: list[Any] | None = Field(None, description="one text for each prompt")
    conversations: list[list[Any]] | None = Field(None, description="lists of turns that end with the response")

    @model_validator(mode="after")
    def _is_one_of_both(self) -> Self:
        given = {name for name in ("prompts", "responses", "conversations") if getattr(self, name) is not None}
        if given not in ({"prompts", "responses"}, {"conversations"}):
            raise ValueError(
                f"got {' and '.join(sorted(given)) or 'nothing'}; send prompts and responses, or conversations"
            )
        if self.prompts is not None and self.responses is not None and len(self.prompts) != len(self.responses):
            counts = f"{len(self.prompts)} prompts and {len(self.responses)} responses"
            raise ValueError(f"got {counts}; send one response for each prompt")
        return self

    def rows(self) -> Rows:
        """Prompts and responses; raises `UserError` for a conversation that ends with no response."""
        if self.conversations is None:
            return self.prompts or [], self.responses or []
        pairs = [split_conversation(turns, f"conversations[{i}]") for i, turns in enumerate(self.conversations)]
        return [prompt for prompt, _ in pairs], [response for _, response in pairs]


class OpenRLHFRequest(BaseModel):
    """OpenRLHF's for `--reward.remote_url`."""

    query: list[str] = Field(description="prompt and response as one text, decoded from the tokens of the policy")
    prompts: list[str] = Field(description="what the policy was given, formatted with its chat template or plain")
    labels: list[Any] | None = None

    @model_validator(mode="after")
    def _has_a_prompt_for_each(self) -> Self:
        if len(self.query) != len(self.prompts):
            raise ValueError(f"got {len(self.query)} query and {len(self.prompts)} prompts; send as many of both")
        return self


class ClassifyRequest(BaseModel):
    """vLLM's for `/classify`, which verl sends as well."""

    model: str | None = None
    input: Any = Field(None, description="a text or a list of texts: conversations as the chat template writes them")
    messages: list[Any] | None = Field(None, description="one conversation as turns")
    use_activation: bool | None = Field(None, description="true gives the sigmoid of the reward")

    @model_validator(mode="after")
    def _is_one_of_both(self) -> Self:
        if (self.input is None) == (self.messages is None):
            raise ValueError("got both or none of input and messages; send one of them")
        if not all(isinstance(text, str) for text in self.texts()):
            raise ValueError("got an input that is no text; send texts that the chat template wrote, or messages")
        return self

    def texts(self) -> list[Any]:
        """Of `input`."""
        return self.input if isinstance(self.input, list) else [] if self.input is None else [self.input]


class RerankRequest(BaseModel):
    """text-embeddings-inference's for `/rerank`."""

    query: Any = Field(description="the prompt, a text or turns")
    texts: list[Any] = Field(description="responses to it")
    raw_scores: bool = Field(False, description="true gives rewards, false their sigmoid")
    return_text: bool = False


def split_conversation(turns: list[Any], where: str) -> tuple[list[Any], Any]:
    """Prompt and response of a conversation; `UserError` where it does not end with the assistant's turn."""
    last = turns[-1] if turns else None
    if len(turns) < 2 or not isinstance(last, dict) or set(last) != {"role", "content"} or last["role"] != "assistant":
        raise UserError(f"{where}: got no response at its end; end it with a turn of the role assistant")
    return turns[:-1], last["content"]
