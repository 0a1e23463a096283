"""The label firewall's far side: what a file knows of labels that training must not see."""

import numpy as np
from torch import Tensor


class HeldOutLabels:
    """Labels of the pool or the test set. Answers with counts, never with a label.

    Args:
        pair_id: (N,) int64 ids of the pairs whose label the file holds.
        label: (N,) int8 labels, 1: a is the better one.
    """

    __slots__ = ("__label", "__pair_id")

    def __init__(self, pair_id: np.ndarray, label: np.ndarray) -> None:
        order = np.argsort(pair_id)
        self.__pair_id, self.__label = pair_id[order], label[order]

    def count_right(self, pair_id: Tensor, label: Tensor) -> tuple[int, float]:
        """How many labels can be checked, and how many of those are right.

        Args:
            pair_id: (K,) int64 ids, of any pairs.
            label: (K,) labels given to them, 1: a is the better one; 0.5 is a tie and counts half.

        Returns:
            Number of pairs with a known truth, and number of right labels among them.
        """
        ids, given = pair_id.cpu().numpy(), label.cpu().numpy()
        if not len(self.__pair_id):
            return 0, 0.0
        place = np.searchsorted(self.__pair_id, ids).clip(max=len(self.__pair_id) - 1)
        is_known = self.__pair_id[place] == ids
        credit = np.where(given == 0.5, 0.5, self.__label[place] == given)
        return int(is_known.sum()), float(credit[is_known].sum())
