"""Versions of this package and of those that a result depends on."""

from importlib.metadata import version

__version__ = "0.1.0"
"""The one place of the version. A release is tagged `v` and this, see docs/howto/release.md."""
_PACKAGES = ("torch", "lightning", "transformers", "peft")


def package_versions() -> dict[str, str]:
    """Version by name of the package; our own also in a bare checkout, of which Python has no metadata."""
    return {"ser-lightning": __version__} | {name: version(name) for name in _PACKAGES}
