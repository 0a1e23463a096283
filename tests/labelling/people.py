"""Pairs and labels made by hand."""

from ser_lightning.data.formats import canonical_pair
from ser_lightning.labelling.label_file import HumanLabel
from ser_lightning.records import PreferencePair


def pair(number: int, label: int | None = None) -> PreferencePair:
    """A pair of sums; label 1 says that the right sum is the better response."""
    prompt = [{"role": "user", "content": f"What is {number} plus {number}?"}]
    return canonical_pair(prompt, f"It is {2 * number}.", f"It is {2 * number + 1}.", label)


def labels(**answers: str) -> list[HumanLabel]:
    """`labels(p1="a", p2="tie")`: labels of the pairs 1 and 2."""
    return [HumanLabel(int(name[1:]), answer, "a", 2.0) for name, answer in answers.items()]
