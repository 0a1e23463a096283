"""The floors beside every accuracy, on the same pairs and from the same labels as the reward model."""

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from ser_lightning.datamodules.preference import PreferenceDataModule
from ser_lightning.errors import UserError
from ser_lightning.floors import BagOfWords
