"""Loads the shared fixtures, except in the controller of xdist, which runs no test and needs no torch."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # two workers share two cores, and the models are tiny
os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported
os.environ["WANDB_MODE"] = "offline"


def pytest_configure(config):
    """Load them in a worker, or in a session without workers."""
    is_controller = getattr(config.option, "tx", None) and not hasattr(config, "workerinput")
    if not is_controller:
        for name in ("tests.fixtures", "tests.data_fixtures", "tests.ranks"):
            config.pluginmanager.import_plugin(name)
