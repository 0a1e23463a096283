"""Pretrained models and what is trained on them: the reward model, the policy, attention masks of packed rows."""
