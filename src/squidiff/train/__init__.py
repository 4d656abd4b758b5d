"""The training loop and its checkpoints. Batches are passed in; nothing here knows genes or AnnData."""
