"""Figures of runs, drawn with Matplotlib."""

from agvm_mm.analysis.figures.accuracy import plot_accuracy
from agvm_mm.analysis.figures.noise import plot_noise
from agvm_mm.analysis.figures.predictions import plot_predictions, predict
from agvm_mm.analysis.figures.sensitivity import plot_sensitivity
from agvm_mm.analysis.figures.style import save_figure
from agvm_mm.analysis.figures.variance import plot_runs, plot_variance
from agvm_mm.analysis.points import folder_points, table_points

__all__ = [
    'folder_points',
    'plot_accuracy',
    'plot_noise',
    'plot_predictions',
    'plot_runs',
    'plot_sensitivity',
    'plot_variance',
    'predict',
    'save_figure',
    'table_points',
]
