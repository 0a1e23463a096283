"""The bag-of-words baseline. (The other one, the longer response wins, is in `metrics.py`.)

A reward model that does not clear both has learnt little. scikit-learn is imported where it is used: it takes more than
a second, and most commands need none of it. N pairs, V words.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ser_lightning.evaluation.metrics import half_credit

MAX_WORDS = 4096
PENALTIES = (0.3, 1.0, 3.0, 10.0, 30.0)
NUM_FOLDS = 5


class BagOfWords:
    """Bradley-Terry on log word counts of the responses: `margin = w . (x_a - x_b)`, with an L2 penalty.

    The penalty is chosen by five-fold cross-validation on the training pairs.
    """

    def __init__(self) -> None:
        self.vectorizer: Any = None
        self.weight = np.zeros(0)

    def fit(self, responses: Sequence[tuple[str, str]], target: Tensor) -> "BagOfWords":
        """Learn the words' weights.

        Args:
            responses: N pairs (response_a, response_b).
            target: (N,) 1 where a is the better one.
        """
        self.vectorizer = word_counter([text for pair in responses for text in pair], MAX_WORDS)
        x, fold = self._features(responses), np.arange(len(target)) % NUM_FOLDS

        def credit(penalty: float) -> float:
            margins = torch.zeros(len(target), dtype=torch.float64)
            for k in range(min(NUM_FOLDS, len(target))):
                margins[fold == k] = torch.from_numpy(x[fold == k] @ _fit(x[fold != k], target[fold != k], penalty))
            return float(half_credit(margins, target).sum())

        self.weight = _fit(x, target, max(PENALTIES, key=credit))
        return self

    def margin(self, responses: Sequence[tuple[str, str]]) -> Tensor:
        """(N,) positive where a looks the better one."""
        return torch.from_numpy(self._features(responses) @ self.weight)

    def _features(self, responses: Sequence[tuple[str, str]]) -> Any:
        """(N, V) sparse, of a less those of b."""
        of_a, of_b = (self.vectorizer.transform(texts).log1p() for texts in zip(*responses, strict=True))
        return (of_a - of_b).tocsr()


def word_counter(texts: Sequence[str], max_words: int) -> Any:
    """A `CountVectorizer` of the words that stand in most of the texts, without regard to case."""
    from sklearn.feature_extraction.text import CountVectorizer

    words_of = CountVectorizer(token_pattern=r"\w+|[^\w\s]").build_analyzer()
    num_texts = Counter(word for text in texts for word in dict.fromkeys(words_of(text)))
    return CountVectorizer(analyzer=words_of, vocabulary=[word for word, _ in num_texts.most_common(max_words)])


def _fit(x: Any, target: Tensor, penalty: float) -> np.ndarray:
    """(V,) weights of a logistic regression without a constant."""
    from scipy.sparse import vstack
    from sklearn.linear_model import LogisticRegression

    if not x.shape[0]:
        return np.zeros(x.shape[1])
    # Every pair from both sides: half the loss, and both classes are there however few pairs there are.
    both = np.concatenate([target.numpy(), 1 - target.numpy()])
    model = LogisticRegression(C=0.5 / penalty, fit_intercept=False, max_iter=1000, tol=1e-8)
    return model.fit(vstack([x, -x]), both).coef_[0]
