"""A reward model behind HTTP, for trainers and rerankers in other processes (`pip install ser-lightning[serve]`)."""
