"""Rewards for texts outside a training."""
