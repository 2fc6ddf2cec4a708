"""JAX in, arrays out: networks are trained by each optimizer, and what they reach is measured."""

from regularized_lopt.measure.flatness import FlatnessConfig as FlatnessConfig
from regularized_lopt.measure.results import StudyResults as StudyResults
