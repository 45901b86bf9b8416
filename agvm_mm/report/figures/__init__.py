"""Figures of runs, drawn with Matplotlib."""

from agvm_mm.report.figures.gradient_noise import plot_gradient_noise
from agvm_mm.report.figures.style import save_figure
from agvm_mm.report.figures.variance import plot_run

__all__ = ['plot_gradient_noise', 'plot_run', 'save_figure']
