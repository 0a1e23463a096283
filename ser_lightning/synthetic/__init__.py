"""The synthetic dataset: pairs with a known gold score, and a small language model that speaks its language."""
