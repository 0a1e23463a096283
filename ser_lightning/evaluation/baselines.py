"""The bag-of-words baseline. (The other one, the longer response wins, is in `metrics.py`.)

A reward model that does not clear both has learnt little. N pairs, V words.
"""

import re
from collections import Counter
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ser_lightning.evaluation.metrics import half_credit

MAX_WORDS = 4096
PENALTIES = (0.3, 1.0, 3.0, 10.0, 30.0)
_WORD = re.compile(r"\w+|[^\w\s]")


class BagOfWords:
    """Bradley-Terry on log word counts of the responses: `margin = w . (x_a - x_b)`, with an L2 penalty.

    The penalty is chosen by five-fold cross-validation on the training pairs.
    """

    def __init__(self) -> None:
        self.column: dict[str, int] = {}
        self.weight = torch.zeros(0)

    @torch.inference_mode(False)  # `test` runs in inference mode, where nothing can be fitted
    @torch.enable_grad()
    def fit(self, responses: Sequence[tuple[str, str]], target: Tensor) -> "BagOfWords":
        """Learn the words' weights.

        Args:
            responses: N pairs (response_a, response_b).
            target: (N,) 1 where a is the better one.
        """
        target = target.clone()
        document_counts = Counter(w for pair in responses for text in pair for w in set(words_of(text)))
        self.column = {w: i for i, (w, _) in enumerate(document_counts.most_common(MAX_WORDS))}
        features = self._features(responses)
        fold = torch.arange(len(target)) % 5
        right = {
            penalty: sum(
                float(half_credit(features[fold == k] @ _fit(features[fold != k], target[fold != k], penalty),
                                  target[fold == k]).sum())
                for k in range(5)
                if (fold == k).any()
            )
            for penalty in PENALTIES
        }  # fmt: skip
        self.weight = _fit(features, target, max(PENALTIES, key=lambda penalty: right[penalty]))
        return self

    def margin(self, responses: Sequence[tuple[str, str]]) -> Tensor:
        """(N,) positive where a looks the better one."""
        return self._features(responses) @ self.weight

    def _features(self, responses: Sequence[tuple[str, str]]) -> Tensor:
        x = torch.zeros(len(responses), len(self.column))
        for row, pair in enumerate(responses):
            for sign, text in zip((1, -1), pair, strict=True):
                for word, count in Counter(words_of(text)).items():
                    if word in self.column:
                        x[row, self.column[word]] += sign * torch.tensor(1.0 + count).log()
        return x


def words_of(text: str) -> list[str]:
    """Its words in small letters."""
    return _WORD.findall(text.lower())


def _fit(x: Tensor, target: Tensor, penalty: float) -> Tensor:
    weight = torch.zeros(x.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=50, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(x @ weight, target, reduction="sum") + penalty / 2 * weight @ weight
        loss.backward()
        return loss

    if len(x):
        optimizer.step(closure)
    return weight.detach()
