"""The LightningModules: thin shells around the packages below."""
