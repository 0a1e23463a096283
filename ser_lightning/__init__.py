"""Self-Evolved Reward learning: a reward model from few human labels, on PyTorch Lightning."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ser_lightning.inference.scorer import RewardScorer as Scorer

__all__ = ["Scorer", "__version__"]
__version__ = "0.1.0"

# In a bare checkout `callbacks/`, `datamodules/` and `configs/` stand beside this package, not in it. An installed
# package that is run from the checkout's root finds this folder first as well, so both need the parent on the path.
_root = Path(__file__).resolve().parent.parent
if (_root / "datamodules" / "__init__.py").is_file():
    __path__.append(str(_root))


def __getattr__(name: str) -> Any:
    """`from ser_lightning import Scorer` loads PyTorch and transformers; `import ser_lightning` alone does not."""
    if name == "Scorer":
        from ser_lightning.inference.scorer import RewardScorer

        return RewardScorer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
