"""Judges what was observed: one module for each subject."""
