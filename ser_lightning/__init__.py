"""Self-Evolved Reward learning: a reward model from few human labels, on PyTorch Lightning."""

from pathlib import Path

__version__ = "0.1.0"

# In a bare checkout `callbacks/`, `datamodules/` and `configs/` stand beside this package, not in it. An installed
# package that is run from the checkout's root finds this folder first as well, so both need the parent on the path.
_root = Path(__file__).resolve().parent.parent
if (_root / "datamodules" / "__init__.py").is_file():
    __path__.append(str(_root))
