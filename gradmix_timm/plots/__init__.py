"""Figures as matplotlib draws them, shared by commands, reports, notebooks and documents."""
