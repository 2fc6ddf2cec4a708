"""Which results are needed, each computed once: experiments, their cache, meta-test in one call."""

from regularized_lopt.study.experiment import Experiment as Experiment
from regularized_lopt.study.experiment import TaskPlan as TaskPlan
from regularized_lopt.study.experiment import task_plan as task_plan
from regularized_lopt.study.one_call import meta_test as meta_test
from regularized_lopt.study.one_call import train as train
from regularized_lopt.study.study import Study as Study
