"""What flows through the method: one record per arrow of `docs/design.md`, a shape and a meaning on every field.

Shapes: N pairs, B pairs of one batch, K selected pairs, T tokens of the longest row. In the RL stage R responses, P
columns of prompts (padded on the left), A columns of responses (padded on the right).
A label or target says whether response *a* is the better one: 1 = a wins, 0 = b wins (as in SHP).
A pair has no "chosen": chosen and rejected exist only inside the loss.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal, Self, TypedDict

import torch
from torch import Tensor


class Turn(TypedDict):
    """One message of a conversation, as chat templates take it."""

    role: str
    content: str


@dataclass(frozen=True)
class PreferencePair:
    """Disk or Hub -> pairs. Its a/b order and its id come from the content alone, so neither can carry the label."""

    pair_id: int
    """63-bit hash of prompt and both responses: the same in every file, order and run."""
    prompt: list[Turn]
    response_a: str
    response_b: str
    label: float | None
    """1: a is the better one, 0: b is, 0.5: a tie, None: unlabelled."""
    source_id: str | None = None
    """The id that the user's file gave the pair, if any."""
    votes: tuple[float, ...] = ()
    """Labels of single annotators, where the file has such; `label` is their majority."""
    annotator: str | None = None
    """Who gave the one vote, where the file names annotators."""

    @property
    def is_decided(self) -> bool:
        """Whether its label names the better response; only such pairs count in accuracies."""
        return self.label in (0, 1)


class TensorRecord:
    """Dataclass of tensors (and plain numbers) that moves between devices as one."""

    def to(self, device: torch.device | str, non_blocking: bool | None = None) -> Self:
        """A copy with every tensor on `device`; Lightning calls this to move batches.

        Without a word the host does not wait for a copy to CUDA, as Lightning has it for tensors, but not for records.
        """
        is_async = torch.device(device).type == "cuda" if non_blocking is None else non_blocking
        return self._with_tensors(lambda value: value.to(device, non_blocking=is_async))

    def pin_memory(self) -> Self:
        """A copy in pinned memory, from where copies to a GPU do not hold up the host; loaders call this."""
        return self._with_tensors(lambda value: value.pin_memory())

    def _with_tensors(self, change: Callable[[Any], Any]) -> Self:
        values = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        moves = (Tensor, TensorRecord)
        return type(self)(**{k: change(v) if isinstance(v, moves) else v for k, v in values.items()})


Padding = Literal["none", "right", "left", "unknown"]
"""Where rows of a batch are filled up: nowhere, after or before the sequence, or anywhere."""


@dataclass(frozen=True)
class Padded(TensorRecord):
    """The layout `padded`: R sequences, a row each."""

    input_ids: Tensor
    """(R, T) int64."""
    attention_mask: Tensor
    """(R, T) int64, 1 = a real token. The padding side is free: nothing may assume one."""
    response: Tensor | None = None
    """(R, M) int64, places of each response's tokens, -1 after them; None where nobody asks where responses begin."""
    padding: Padding = "unknown"
    """What the host knows of the attention mask."""

    @property
    def num_tokens(self) -> Tensor:
        """(R,) int64, length of each sequence."""
        return self.attention_mask.sum(-1)

    def places(self, positions: Tensor) -> Tensor:
        """(R, n) places of the tokens at `positions` (R, n) of each sequence; a place counts all rows' columns."""
        rows = torch.arange(len(self.attention_mask), device=positions.device)[:, None]
        return rows * self.attention_mask.shape[1] + self.attention_mask.argmax(-1, keepdim=True) + positions

    @property
    def last_places(self) -> Tensor:
        """(R,) int64, place of each sequence's last token."""
        rows, columns = (torch.arange(n, device=self.attention_mask.device) for n in self.attention_mask.shape)
        return rows * len(columns) + (columns * self.attention_mask).argmax(-1)


@dataclass(frozen=True)
class Packed(TensorRecord):
    """The layout `shared_prompt`: R sequences in N rows of L tokens, their common beginnings only once.

    A group of sequences lies as [what all share | the rest of its first | the rest of its second | ...], and a row
    holds one group or several. The rest of a sequence attends to what is shared and to itself, and its positions go on
    where the shared ones end. A place is a token's index in all rows, one after the other.

    So what a token attends to are two runs of columns, up to its own: those that its group shares, and those of its own
    part from `part_start` on. Padding is a group of its own.
    """

    input_ids: Tensor
    """(N, L) int64."""
    position_ids: Tensor
    """(N, L) int64, position of the token in its sequence, from 0."""
    group_start: Tensor
    """(N, L) int32, column where the token's group begins, with what all of it share."""
    shared_end: Tensor
    """(N, L) int32, column after what the token's group shares."""
    part_start: Tensor
    """(N, L) int32, column where the token's part begins: what its group shares, or the rest of one sequence."""
    shared_start: Tensor
    """(R,) int64, place where the sequence's shared tokens begin."""
    num_shared: Tensor
    """(R,) int64, how many they are."""
    own_start: Tensor
    """(R,) int64, place where the rest of the sequence begins."""
    num_tokens: Tensor
    """(R,) int64, length of each sequence, shared tokens included."""
    response: Tensor | None = None
    """(R, M) int64, places of each response's tokens, -1 after them; None where nobody asks where responses begin."""

    @property
    def last_places(self) -> Tensor:
        """(R,) int64, place of each sequence's last token."""
        return self.places(self.num_tokens[:, None] - 1).squeeze(-1)

    def places(self, positions: Tensor) -> Tensor:
        """(R, n) places of the tokens at `positions` (R, n) of each sequence."""
        shared = self.num_shared[:, None]
        own = self.own_start[:, None] + positions - shared
        return torch.where(positions < shared, self.shared_start[:, None] + positions, own)


@dataclass(frozen=True)
class Features(TensorRecord):
    """What a frozen body makes of R sequences, ready for a head."""

    hidden: Tensor
    """(R, K, H) states of each sequence at the K readings of the head."""
    num_tokens: Tensor
    """(R,) int64, length of each sequence."""
    scale: Tensor | None = None
    """(K * H,) what differences of states are divided by, see `difference_scale`."""


Inputs = Padded | Packed
"""What a model reads: R sequences in one of the layouts."""


@dataclass(frozen=True)
class PairBatch(TensorRecord):
    """Pairs -> ids: a micro-batch. Sequence i is prompt and response a of pair i, sequence B + i its response b."""

    inputs: Inputs | Features
    """2B sequences."""
    pair_id: Tensor
    """(B,) int64."""
    dialogue: Tensor
    """(B,) int64, equal for pairs of one prompt, or of prompts that continue one another."""
    target: Tensor
    """(B,) float32, probability that a wins; NaN where the batch must not know (scoring)."""
    weight: Tensor
    """(B,) float32, the pair's weight in the loss, 1 on average; 0 for a row that only fills up a rank."""
    num_step_pairs: int
    """Pairs in the whole optimiser step, over all micro-batches and ranks: what the loss is divided by."""
    eval_set: str | None = None
    """Name of the evaluation set that the pairs belong to; None for those of a split."""

    @property
    def num_pairs(self) -> int:
        """B."""
        return self.pair_id.shape[0]


@dataclass(frozen=True)
class PairScores(TensorRecord):
    """Ids -> rewards, in logits and float32."""

    pair_id: Tensor
    """(N,) int64."""
    reward_a: Tensor
    """(N,) float32."""
    reward_b: Tensor
    """(N,) float32."""
    tokens_a: Tensor
    """(N,) int64, tokens of prompt and response a."""
    tokens_b: Tensor
    """(N,) int64, tokens of prompt and response b."""

    @property
    def length_difference(self) -> Tensor:
        """(N,) int64, tokens of response a minus tokens of response b (their prompt is the same)."""
        return self.tokens_a - self.tokens_b

    @property
    def margin(self) -> Tensor:
        """(N,) reward_a - reward_b: positive where the model takes a for the better one."""
        return self.reward_a - self.reward_b

    def __len__(self) -> int:
        return self.pair_id.shape[0]

    def __getitem__(self, index: Tensor) -> "PairScores":
        """The scores at `index`, a boolean mask or positions."""
        return PairScores(*(getattr(self, f.name)[index] for f in fields(self)))


@dataclass(frozen=True)
class Selection(TensorRecord):
    """Rewards -> labels: the pseudo-labels that the next round trains on. Ids and labels, never data."""

    pair_id: Tensor
    """(K,) int64."""
    label: Tensor
    """(K,) int8, 1: a is the better one."""
    probability: Tensor
    """(K,) float32, the rule's probability that `label` is right, at least 0.5."""
    status: int
    """Learning status that the rule found: 0 none, 1 tells good from bad, 2 amplifies the difference."""
    round: int
    """Round whose model made the labels; they train the model of round + 1."""

    def __len__(self) -> int:
        return self.pair_id.shape[0]

    @classmethod
    def empty(cls, round: int = 0) -> "Selection":
        """A selection of nothing."""
        return cls(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int8), torch.empty(0), 0, round)


@dataclass(frozen=True)
class ResponseBatch(TensorRecord):
    """Labelled pairs -> responses to imitate: a micro-batch of supervised fine-tuning, B responses with N tokens."""

    inputs: Padded
    """Prompts and responses, padded on the right."""
    response_places: Tensor
    """(N,) int64, place of each token of a response, its end included, row by row: what the loss counts. The first of
    a row is none of them."""
    num_step_tokens: int
    """Response tokens in the whole optimiser step, over all micro-batches and ranks: what the loss is divided by."""


@dataclass(frozen=True)
class Prompt:
    """A conversation that waits for a response."""

    prompt_id: int
    """63-bit hash of the turns, which ignores case and white space."""
    turns: list[Turn]
    ids: list[int]
    """Its tokens through the chat template, up to where the response begins."""


@dataclass(frozen=True)
class PromptBatch(TensorRecord):
    """Prompts -> policy: one rank's share of the prompts of one step."""

    prompts: list[Prompt]
    positions: list[int]
    """Place of each prompt in the whole step, over all ranks; the random numbers of its answers go by it and `step`."""
    num_step_prompts: int
    """Prompts in the whole step, over all ranks."""
    step: int
    """Number of the step, from 0."""


@dataclass(frozen=True)
class Rollout(TensorRecord):
    """Policy -> responses: R prompts with one sampled response each, on the CPU, where batches are planned."""

    input_ids: Tensor
    """(R, P + A) int64, the prompt padded on the left, the response on the right."""
    attention_mask: Tensor
    """(R, P + A) int64, 1 = a real token."""
    response_mask: Tensor
    """(R, A) bool, True = a token that the policy chose, the one that ends the response included."""
    has_ended: Tensor
    """(R,) bool, whether the policy ended the response itself; False where it ran into the limit."""

    @property
    def num_prompt_columns(self) -> int:
        """P."""
        return self.input_ids.shape[1] - self.response_mask.shape[1]

    @property
    def response_ids(self) -> Tensor:
        """(R, A) int64."""
        return self.input_ids[:, self.num_prompt_columns :]

    @property
    def num_response_tokens(self) -> Tensor:
        """(R,) int64."""
        return self.response_mask.sum(-1)

    def __len__(self) -> int:
        return self.input_ids.shape[0]


@dataclass(frozen=True)
class RolloutBatch(TensorRecord):
    """Responses -> losses: a micro-batch of a rollout, some of its responses with N tokens in all."""

    inputs: Inputs
    """Prompts and responses as a model reads them."""
    response_ids: Tensor
    """(N,) int64, the tokens that the policy chose, response by response."""
    state_places: Tensor
    """(N,) int64, place of the state that each of them was predicted from."""
    table_places: Tensor
    """(N,) int64, where each of them stands in the rollout's table of (R, A), row by row."""


@dataclass(frozen=True)
class Responses(TensorRecord):
    """Policy -> pool: K responses to one prompt, as text."""

    prompt_id: int
    turns: list[Turn]
    texts: list[str]
    """K."""
    has_ended: list[bool]
    """K."""


@dataclass(frozen=True)
class Answers:
    """Responses -> judgement: what a policy answers to N held-out prompts, on the CPU."""

    prompt_id: Tensor
    """(N,) int64."""
    prompts: list[str]
    """N last turns of the prompts."""
    responses: list[str]
    """N."""
    reward: Tensor
    """(N,) float32, the reward that the policy is trained on, without the KL penalty."""
    judge: Tensor | None
    """(N,) float32, scores of a second judge that the policy is not trained on; None without one."""
    kl: Tensor
    """(N,) float32, log-ratio of the whole response, policy to reference: a sample of the KL divergence in nats."""
    num_tokens: Tensor
    """(N,) int64, tokens of the response."""
    has_ended: Tensor
    """(N,) bool."""
