"""When the dynamics are stable: the paper's Figure 1, its Theorem 1 and its Lemmas 2 and 3."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from regularized_lopt import errors
from regularized_lopt.configurable import configurable
from regularized_lopt.measure.noisy_quadratic.problem import NoisyQuadratic, spectral_radius

ROUNDING = 1e-9
"""A spectral radius of at most 1 + this counts as at most 1."""

COMMUTING = "commuting D and symmetric P~"
"""The kind for which Lemma 3 is true: D P~ is symmetric."""

FACTORS = {
    COMMUTING: (("none", False), ("orthogonal", True)),
    "D = d I, other P~, eigenvalues real": (("any", True),),
    "symmetric P~, not commuting": (("orthogonal", False),),
    "other P~, not commuting, eigenvalues real": (("any", False),),
}
"""Ways to draw the factors of Lemma 3, by kind: the basis of P~, and whether D is d I.

D = d I commutes with every P~. A P~ that commutes with every D is diagonal.
"""


@configurable()
@dataclasses.dataclass(frozen=True)
class Stability:
    """What is drawn at random. The paper leaves all of it out.

    Attributes:
      num_samples: black boxes of each kind, > 0.
      black_box_std: of the entries of P in Figure 1, > 0.
      nominal_share: nominal step, as a share of the largest stable one, 2 / lambda_max, in (0, 1).
      decay: what decay leaves of P in Figure 1, in [0, 1].
      largest_scale: d_max of Lemma 3, > 0.
      lemma_3_share: nominal step of Lemma 3, a share as well; close to 1 the rare P~ that are
        symmetric, do not commute with D and fail are frequent enough to be drawn.
      seed: 0 to 2^32 - 1.
    """

    num_samples: int = 20_000
    black_box_std: float = 1.0
    nominal_share: float = 0.5
    decay: float = 0.5
    largest_scale: float = 2.0
    lemma_3_share: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        errors.check_count("Stability.num_samples", self.num_samples)
        errors.check_positive("Stability.black_box_std", self.black_box_std)
        errors.check_in("Stability.nominal_share", self.nominal_share, "(0, 1)")
        errors.check_in("Stability.lemma_3_share", self.lemma_3_share, "(0, 1)")
        errors.check_in("Stability.decay", self.decay, "[0, 1]")
        errors.check_positive("Stability.largest_scale", self.largest_scale)
        errors.check_seed("Stability.seed", self.seed)


def nominal_step(problem: NoisyQuadratic, share: float, preconditioned: bool = False) -> float:
    """a, as a share of the largest stable one, 2 / lambda_max."""
    return share * 2 / problem.largest(preconditioned)


def eigenvalue_maps(problem: NoisyQuadratic, what: Stability) -> dict[str, np.ndarray]:
    """Eigenvalues of A for random black boxes, [num_samples, n] complex, by what was changed.

    "nothing" is P alone; the same P serves for all.
    """
    shape = (what.num_samples, problem.size, problem.size)
    black_box = what.black_box_std * np.random.default_rng(what.seed).standard_normal(shape)

    def eigenvalues(share: float, decay: float, preconditioned: bool) -> np.ndarray:
        nominal = nominal_step(problem, share, preconditioned)
        dynamics = problem.dynamics(nominal, decay * black_box, preconditioned)
        return np.linalg.eigvals(np.asarray(dynamics)).astype(complex)

    return {
        "nothing": eigenvalues(0.0, 1.0, False),
        "nominal term": eigenvalues(what.nominal_share, 1.0, False),
        "decay": eigenvalues(0.0, what.decay, False),
        "preconditioner": eigenvalues(0.0, 1.0, True),
        "all three": eigenvalues(what.nominal_share, what.decay, True),
    }


def bounds(
    problem: NoisyQuadratic, nominal: float, preconditioned: bool = False, scale: float = 1.0
) -> tuple[float, float]:
    """Of the eigenvalues of P, between which A is said to be stable.

    Theorem 1: -a and 2 / lambda_max(H) - a. Lemma 2: lambda_max of the root of H. Lemma 3: both
    divided by d_max, the `scale`, of the eigenvalues of P~, where P = D P~ and D is diagonal with
    entries in (0, d_max].

    All are true for symmetric P, which Lemma 3 has where P~ is symmetric and commutes with D. Real
    eigenvalues are not enough, nor are factors that commute.
    """
    return -nominal / scale, (2 / problem.largest(preconditioned) - nominal) / scale


@dataclasses.dataclass(frozen=True)
class Tried:
    """A statement on random black boxes that fulfil its bounds.

    Attributes:
      statement: "Theorem 1", ...
      kind: of black box.
      claimed: whether the statement is true for this kind.
      nominal: a.
      radius: [num_samples], the spectral radius of A.
      example: [n, n], of the P with a radius above 1 the smallest; None: there is none.
      example_radius: its own; NaN: there is none.
    """

    statement: str
    kind: str
    claimed: bool
    nominal: float
    radius: np.ndarray
    example: np.ndarray | None
    example_radius: float

    @classmethod
    def of(
        cls,
        statement: str,
        kind: str,
        claimed: bool,
        nominal: float,
        black_box: np.ndarray,
        dynamics: Any,
    ) -> Tried:
        """From P and A, [num_samples, n, n]."""
        radius = spectral_radius(dynamics)
        sizes = np.where(_is_unstable(radius), np.linalg.norm(black_box, axis=(1, 2)), np.inf)
        place = sizes.argmin()
        fails = np.isfinite(sizes[place])
        example = black_box[place] if fails else None
        example_radius = float(radius[place]) if fails else np.nan
        return cls(statement, kind, claimed, nominal, radius, example, example_radius)

    @property
    def unstable(self) -> float:
        """The share of A with a spectral radius above 1."""
        return float(_is_unstable(self.radius).mean())


def _is_unstable(radius: np.ndarray) -> np.ndarray:
    return radius > 1 + ROUNDING


def try_statements(problem: NoisyQuadratic, what: Stability) -> list[Tried]:
    """Theorem 1 and Lemmas 2 and 3, each where it is true and where it is not."""
    rng, shape = np.random.default_rng(what.seed + 1), (what.num_samples, problem.size)
    found = []
    for statement, preconditioned in (("Theorem 1", False), ("Lemma 2", True)):
        nominal = nominal_step(problem, what.nominal_share, preconditioned)
        ends = bounds(problem, nominal, preconditioned)
        for kind, basis in (("symmetric P", "orthogonal"), ("other P, eigenvalues real", "any")):
            black_box = with_eigenvalues(rng, rng.uniform(*ends, shape), basis)
            dynamics = problem.dynamics(nominal, black_box, preconditioned)
            claimed = basis == "orthogonal"
            found.append(Tried.of(statement, kind, claimed, nominal, black_box, dynamics))
    nominal = nominal_step(problem, what.lemma_3_share)
    ends = bounds(problem, nominal, scale=what.largest_scale)
    for kind, ways in FACTORS.items():
        scales, inner = factors(rng, rng.uniform(*ends, shape), what.largest_scale, ways)
        black_box = scales[..., None] * inner
        dynamics = problem.dynamics(nominal, black_box)
        found.append(Tried.of("Lemma 3", kind, kind == COMMUTING, nominal, black_box, dynamics))
    return found


def factors(
    rng: np.random.Generator,
    values: np.ndarray,
    largest: float,
    ways: Sequence[tuple[str, bool]],
) -> tuple[np.ndarray, np.ndarray]:
    """The diagonals of D, [samples, n], and P~, [samples, n, n].

    Args:
      rng: of entries of D and of bases.
      values: eigenvalues of P~, [samples, n].
      largest: d_max; entries of D are uniform in (0, d_max].
      ways: values of `FACTORS`; each serves for an equal share of the samples.
    """
    scales, inner = [], []
    for part, (basis, alike) in zip(np.array_split(values, len(ways)), ways, strict=True):
        drawn = largest * (1 - rng.random(part.shape))
        scales.append(np.broadcast_to(drawn[:, :1], part.shape) if alike else drawn)
        inner.append(with_eigenvalues(rng, part, basis))
    return np.concatenate(scales), np.concatenate(inner)


def with_eigenvalues(rng: np.random.Generator, values: np.ndarray, basis: str) -> np.ndarray:
    """Matrices [..., n, n] with eigenvalues [..., n].

    Args:
      rng: of the bases.
      values: the eigenvalues, real.
      basis: of eigenvectors: "none", so that they are diagonal; "orthogonal", so that they are
        symmetric; "any", with normal entries.
    """
    diagonal = values[..., None] * np.eye(values.shape[-1])
    if basis == "none":
        return diagonal
    vectors = rng.standard_normal(diagonal.shape)
    if basis == "any":
        return vectors @ diagonal @ np.linalg.inv(vectors)
    vectors, _ = np.linalg.qr(vectors)
    return vectors @ diagonal @ np.swapaxes(vectors, -1, -2)
