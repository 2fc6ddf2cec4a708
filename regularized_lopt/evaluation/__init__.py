"""Evaluation: meta-test, properties, statistics, figures and reports."""

from regularized_lopt.evaluation.experiment import Experiment as Experiment
from regularized_lopt.evaluation.laboratory import Laboratory as Laboratory
from regularized_lopt.evaluation.meta_test import meta_test as meta_test
from regularized_lopt.evaluation.meta_test import train as train
from regularized_lopt.evaluation.properties import Measurement as Measurement
from regularized_lopt.evaluation.verdicts import TaskResult as TaskResult
