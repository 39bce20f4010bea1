"""Stages of a training run and their flags; :mod:`gradmix_timm.cli.train` runs them in order."""
