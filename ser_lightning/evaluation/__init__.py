"""What is said of a reward model: metrics, calibration, baselines, paired tests, RewardBench."""
