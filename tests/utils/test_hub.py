"""Whether the Hub is there is asked once, and without it nothing is tried again and again."""

import sys
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import constants

from ser_lightning.utils import hub


@pytest.fixture
def asked(monkeypatch):
    """What was asked of the Hub; `answer` is what comes back."""
    found = SimpleNamespace(addresses=[], answer=lambda: None)

    def head(address, timeout):
        found.addresses.append(address)
        return found.answer()

    monkeypatch.setattr(huggingface_hub, "get_session", lambda: SimpleNamespace(head=head))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(config=SimpleNamespace(HF_HUB_OFFLINE=False)))
    hub._is_reachable.cache_clear()
    yield found
    hub._is_reachable.cache_clear()


def fail():
    raise OSError("Name or service not known")


def test_a_hub_that_answers_is_used(asked):
    assert not hub.without_hub("owner/model") and not hub.without_hub("owner/other")
    assert asked.addresses == [constants.ENDPOINT] and not constants.HF_HUB_OFFLINE


def test_without_an_answer_every_client_goes_offline(asked):
    asked.answer = fail
    assert hub.without_hub("owner/model") and hub.without_hub("owner/other")
    assert len(asked.addresses) == 1
    assert huggingface_hub.constants.is_offline_mode() and sys.modules["datasets"].config.HF_HUB_OFFLINE


def test_nobody_asks_for_a_folder_that_is_there_or_when_told_to_stay_offline(asked, tmp_path, monkeypatch):
    assert not hub.without_hub(str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.without_hub("owner/model")
    assert not asked.addresses
