"""One trial of a search for hyperparameters, and what came of it."""

from __future__ import annotations

import dataclasses

import numpy as np

from regularized_lopt.measure.results import Result

Bindings = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Trial:
    """One trial and what came of it.

    Attributes:
      variant: its name.
      bindings: what was tried.
      result: runs on meta-train images, judged on held-out ones, and what was measured around their
        ends.
      chosen: whether it is the variant's best.
    """

    variant: str
    bindings: Bindings
    result: Result
    chosen: bool = False

    @property
    def loss(self) -> np.ndarray:
        """[runs], held-out loss (nats) at the end."""
        return self.result.curves[0].test_loss[:, -1]

    @property
    def score(self) -> float:
        """Its mean; infinite if any run diverged."""
        return float(np.nan_to_num(self.loss.mean(), nan=np.inf))

    def rise(self, scale: str) -> np.ndarray:
        """[runs], of the held-out loss within `HEADLINE_RADIUS` of the end."""
        return self.result.at["completion"][0].last("gsam", scale)[:, 0]
