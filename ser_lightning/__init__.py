"""Self-Evolved Reward learning: a reward model from few human labels, on PyTorch Lightning.

The names below are the public ones: import them from here, and write them so in YAML, `ser_lightning.RewardModule`.
The modules that they live in may change.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ser_lightning.utils.versions import __version__ as __version__

if TYPE_CHECKING:
    from ser_lightning.callbacks.alerts import WebhookCallback as WebhookCallback
    from ser_lightning.callbacks.baselines import BaselineCallback as BaselineCallback
    from ser_lightning.callbacks.evaluation import EvaluationCallback as EvaluationCallback
    from ser_lightning.callbacks.evolution import EvolutionCallback as EvolutionCallback
    from ser_lightning.callbacks.guards import GuardCallback as GuardCallback
    from ser_lightning.callbacks.policy_watch import PolicyWatch as PolicyWatch
    from ser_lightning.callbacks.prediction_writers import PoolWriter as PoolWriter
    from ser_lightning.callbacks.prediction_writers import PredictionWriter as PredictionWriter
    from ser_lightning.callbacks.progress import PhaseProgressBar as PhaseProgressBar
    from ser_lightning.callbacks.report import ReportCallback as ReportCallback
    from ser_lightning.datamodules.preference import PreferenceDataModule as PreferenceDataModule
    from ser_lightning.datamodules.prompts import PromptDataModule as PromptDataModule
    from ser_lightning.datamodules.responses import ResponseDataModule as ResponseDataModule
    from ser_lightning.errors import UserError as UserError
    from ser_lightning.evolution.query import MostUncertain as MostUncertain
    from ser_lightning.evolution.query import Random as Random
    from ser_lightning.evolution.selection import CalibratedRule as CalibratedRule
    from ser_lightning.evolution.selection import PaperRule as PaperRule
    from ser_lightning.evolution.selection import ReleasedRule as ReleasedRule
    from ser_lightning.evolution.selection import SelectionContext as SelectionContext
    from ser_lightning.evolution.selection import SelectionResult as SelectionResult
    from ser_lightning.evolution.selection import TopShareRule as TopShareRule
    from ser_lightning.inference.reward_function import reward_function as reward_function
    from ser_lightning.inference.scorer import Scorer as Scorer
    from ser_lightning.models.backbone import Backbone as Backbone
    from ser_lightning.models.backbone import LoraSettings as LoraSettings
    from ser_lightning.models.reward_model import RewardModel as RewardModel
    from ser_lightning.modules.generate import GenerateModule as GenerateModule
    from ser_lightning.modules.ppo import PPOModule as PPOModule
    from ser_lightning.modules.reward import RewardModule as RewardModule
    from ser_lightning.modules.sft import SFTModule as SFTModule
    from ser_lightning.records import PairScores as PairScores
    from ser_lightning.records import PreferencePair as PreferencePair
    from ser_lightning.rl.experience import PPOSettings as PPOSettings
    from ser_lightning.rl.policy_math import AdaptiveKL as AdaptiveKL
    from ser_lightning.rl.policy_math import FixedKL as FixedKL
    from ser_lightning.rl.rollout import Sampling as Sampling
    from ser_lightning.synthetic.world import gold_scores as gold_scores

_MODULES = {
    "AdaptiveKL": "rl.policy_math",
    "Backbone": "models.backbone",
    "BaselineCallback": "callbacks.baselines",
    "CalibratedRule": "evolution.selection",
    "Random": "evolution.query",
    "EvaluationCallback": "callbacks.evaluation",
    "EvolutionCallback": "callbacks.evolution",
    "FixedKL": "rl.policy_math",
    "GenerateModule": "modules.generate",
    "GuardCallback": "callbacks.guards",
    "LoraSettings": "models.backbone",
    "MostUncertain": "evolution.query",
    "PPOModule": "modules.ppo",
    "PPOSettings": "rl.experience",
    "PairScores": "records",
    "PaperRule": "evolution.selection",
    "PhaseProgressBar": "callbacks.progress",
    "PolicyWatch": "callbacks.policy_watch",
    "PoolWriter": "callbacks.prediction_writers",
    "PredictionWriter": "callbacks.prediction_writers",
    "PreferenceDataModule": "datamodules.preference",
    "PreferencePair": "records",
    "PromptDataModule": "datamodules.prompts",
    "ReleasedRule": "evolution.selection",
    "ReportCallback": "callbacks.report",
    "ResponseDataModule": "datamodules.responses",
    "RewardModel": "models.reward_model",
    "RewardModule": "modules.reward",
    "SFTModule": "modules.sft",
    "Sampling": "rl.rollout",
    "Scorer": "inference.scorer",
    "SelectionContext": "evolution.selection",
    "SelectionResult": "evolution.selection",
    "TopShareRule": "evolution.selection",
    "UserError": "errors",
    "WebhookCallback": "callbacks.alerts",
    "gold_scores": "synthetic.world",
    "reward_function": "inference.reward_function",
}
"""Public name -> the module below this package that defines it."""

__all__ = [*_MODULES, "__version__"]

# In a bare checkout `callbacks/`, `datamodules/` and `configs/` stand beside this package, not in it. An installed
# package that is run from the checkout's root finds this folder first as well, so both need the parent on the path.
_root = Path(__file__).resolve().parent.parent
if (_root / "datamodules" / "__init__.py").is_file():
    __path__.append(str(_root))


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for: `import ser_lightning` alone loads no PyTorch."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"ser_lightning.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
