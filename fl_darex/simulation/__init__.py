"""Ray behind Flower's Grid interface."""

from fl_darex.simulation.cluster import Resources
from fl_darex.simulation.ray_grid import RayGrid
from fl_darex.simulation.simulate import simulate

__all__ = ["RayGrid", "Resources", "simulate"]
