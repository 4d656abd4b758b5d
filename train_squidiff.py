"""Upstream's entry point: `python train_squidiff.py --logger_path ... --data_path ...`."""

from squidiff.cli.upstream import train_squidiff

if __name__ == "__main__":
    train_squidiff()
