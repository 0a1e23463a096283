"""Where the shared fixtures are loaded: not in the process of xdist that hands out the tests, which needs no torch."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # two workers share two cores, and the models are tiny
os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported
os.environ["WANDB_MODE"] = "offline"


def pytest_configure(config):
    """A worker, and a session without workers, has everything."""
    hands_out = getattr(config.option, "tx", None) and not hasattr(config, "workerinput")
    if not hands_out:
        for name in ("tests.fixtures", "tests.data_fixtures", "tests.ranks"):
            config.pluginmanager.import_plugin(name)
