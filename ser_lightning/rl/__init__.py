"""The RL stage as plain functions: policy losses, rollouts, experience, reward functions."""
