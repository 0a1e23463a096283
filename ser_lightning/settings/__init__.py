"""Every key of a config with its type, default and help, at hand before anything heavy is imported."""
