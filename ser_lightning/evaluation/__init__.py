"""Evaluation of reward models: metrics, calibration, baselines, paired tests, RewardBench."""
