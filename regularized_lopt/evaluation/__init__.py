"""Evaluation: meta-test, flatness, statistics, figures and reports."""

from regularized_lopt.evaluation.meta_test import MetaTestResult as MetaTestResult
from regularized_lopt.evaluation.meta_test import meta_test as meta_test
