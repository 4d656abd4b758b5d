"""`python -m squidiff`: the command line."""

from squidiff.cli import main

main()
