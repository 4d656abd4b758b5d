"""The command line: options from the settings, work by the library, tables and progress by rich.

Heavy imports stand inside the commands, so that `squidiff --help` answers at once.
"""

from squidiff.cli.app import main

__all__ = ["main"]
