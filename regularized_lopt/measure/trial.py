"""One trial of a search for hyperparameters, and what came of it."""

from __future__ import annotations

import dataclasses

import numpy as np
import xarray as xr

from regularized_lopt.measure import selections

Bindings = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Trial:
    """One trial and what came of it.

    Attributes:
      variant: its name.
      bindings: what was tried.
      found: with its one optimizer, see `selections.optimizer`: runs on meta-train images, judged
        on held-out ones, and what was measured around their ends.
      chosen: whether it is the variant's best.
    """

    variant: str
    bindings: Bindings
    found: xr.Dataset
    chosen: bool = False

    @property
    def loss(self) -> np.ndarray:
        """[runs], held-out loss (nats) at the end."""
        return selections.final(self.found, "test_loss")[0]

    @property
    def score(self) -> float:
        """Its mean; infinite if any run diverged."""
        return float(np.nan_to_num(self.loss.mean(), nan=np.inf))

    def rise(self, scale: str) -> np.ndarray:
        """[runs], of the held-out loss within `HEADLINE_RADIUS` of the end."""
        rise = selections.last(self.found, "gsam").isel(seed=0, radius=0)
        return rise.sel(point="completion", scale=scale).values
