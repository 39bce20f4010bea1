"""Many trainings and their evaluations as resumable cells of a grid; tables and plots from the cells' files alone."""
from .cells import run_cell
from .engines import list_engines, run_study
from .plan import Cell, Study, read_study
from .tables import draw_study, study_tables

__all__ = [
    'Cell', 'Study', 'draw_study', 'list_engines', 'read_study', 'run_cell', 'run_study', 'study_tables']
