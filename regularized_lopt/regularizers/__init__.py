"""Flatness terms for the outer objective, in meta space and in optimizee space."""

from __future__ import annotations

from regularized_lopt.regularizers.asam import ASAM as ASAM
from regularized_lopt.regularizers.base import Function as Function
from regularized_lopt.regularizers.base import Objective as Objective
from regularized_lopt.regularizers.base import Query as Query
from regularized_lopt.regularizers.base import Regularizer as Regularizer
from regularized_lopt.regularizers.gam import GAM as GAM
from regularized_lopt.regularizers.gsam import GSAM as GSAM
from regularized_lopt.regularizers.hessian import HessianFrobenius as HessianFrobenius
from regularized_lopt.regularizers.hessian import HessianTop as HessianTop
from regularized_lopt.regularizers.hessian import HessianTrace as HessianTrace
from regularized_lopt.regularizers.l2 import L2 as L2
from regularized_lopt.regularizers.orthogonal import Orthogonal as Orthogonal
from regularized_lopt.regularizers.registry import get as get
from regularized_lopt.regularizers.registry import names as names
from regularized_lopt.regularizers.registry import register as register
from regularized_lopt.regularizers.sam import SAM as SAM
from regularized_lopt.regularizers.schedules import proportional_schedule as proportional_schedule
from regularized_lopt.regularizers.schedules import value_at as value_at
from regularized_lopt.regularizers.smoothing import Smoothing as Smoothing
from regularized_lopt.regularizers.sum import Sum as Sum
