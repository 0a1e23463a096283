"""Lightning data modules, imported as `ser_lightning.datamodules`."""
