"""Looks at a run: each module at one moment."""
