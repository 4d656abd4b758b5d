"""Upstream's entry point: `python sample_squidiff.py --model_path ... --data_path ...`, or `import sample_squidiff`."""

if __name__ == "__main__":
    from squidiff.cli.upstream import sample_squidiff

    sample_squidiff()
else:  # the command sets what torch reads when it is loaded, so it loads it itself
    from squidiff.legacy.sample import sampler

    __all__ = ["sampler"]
