"""A trained model as an ordinary transformers folder, with its card."""
