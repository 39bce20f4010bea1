"""Evaluation of any model on known and unknown images: settings, images, model, steps, folder."""
