"""Upstream's commands, files and calls, over our parts: for whoever has code or habits of Squidiff 1.0.8."""
