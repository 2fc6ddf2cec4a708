"""The page on the noisy quadratic problem."""

from regularized_lopt.report.noisy_quadratic.page import Results as Results
from regularized_lopt.report.noisy_quadratic.page import write as write
