"""Upstream's import name, for code that has it; the library itself is `squidiff`."""
