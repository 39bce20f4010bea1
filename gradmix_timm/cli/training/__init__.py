"""Stages of a training run and their flags; :mod:`.run` has them in order."""
