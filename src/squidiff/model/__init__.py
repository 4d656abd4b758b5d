"""The networks. Torch only; knows no files and no AnnData."""
