"""The mathematics of diffusion: noise levels, loss, samplers. Torch only; knows no genes, no files, no AnnData."""
