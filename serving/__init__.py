"""Serving: a smoothed classifier as a SavedModel."""
