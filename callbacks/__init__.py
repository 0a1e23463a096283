"""Lightning callbacks, imported as `ser_lightning.callbacks`."""
