"""Reports of an evaluation: tables, figures and pages, made from its files alone."""
