"""The YAML files that ship with the package; `--config NAME` finds them from any folder."""
