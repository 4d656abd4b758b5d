"""Predictors of the mean response: the floors that a model must beat, and the anchor that it is conditioned on.

Numpy and scipy only: arrays are passed in. No torch, no AnnData, no files.
"""
