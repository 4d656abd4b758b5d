"""Whole jobs made of the parts: what a command does, without the command line."""
