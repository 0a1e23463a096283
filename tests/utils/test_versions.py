from importlib.metadata import PackageNotFoundError, version

import ser_lightning.utils.versions as versions
from ser_lightning import __version__


def test_our_own_version_needs_no_installation(monkeypatch):
    def in_a_bare_checkout(name):
        if name == "ser-lightning":
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(versions, "version", in_a_bare_checkout)
    found = versions.package_versions()
    assert found["ser-lightning"] == __version__ and found["torch"] == version("torch")


def test_an_installed_package_has_the_version_of_its_code():
    assert version("ser-lightning") == __version__
