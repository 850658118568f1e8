# Copyright (c) 2026, The nemo_mshubert authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

"""Projection-weighted CCA of two views of the same samples, fitted on some samples and scored on others.

    CCA      canonical correlation analysis, computed as in Raghu et al. 2017 ("SVCCA"): singular value decomposition
             of Sxx^-1/2 Sxy Syy^-1/2, with small diagonal terms (epsilons) against singular covariances
    PWCCA    Morcos, Raghu, Bengio 2018 ("Insights on representational similarity ..."), section 3: the mean of the
             correlations rho_i, each weighted by how much of a view its canonical variable h_i accounts for:
             a_i = sum over the view's dimensions j of |<h_i, x_j>|
    protocol Pasad, Chou, Livescu 2021 ("Layer-wise analysis ..."), as in ankitapasad/layerwise-analysis: stratified
             splits; one split chooses the epsilons, another gives the score; mean over several trials

Legend: N samples, X and Y dimensions of the views, C = min(X, Y) canonical variables.
"""

import itertools
from dataclasses import dataclass
from typing import Dict, Iterator, List, NamedTuple, Tuple

import numpy as np

WEIGHTS = ("published", "layerwise-analysis")
FIRST_EPSILONS = (1e-10, 1e-11, 1e-9)
NEXT_EPSILONS = (1e-8, 1e-7, 1e-6, 1e-5)  # tried if too few of the first lead to a solution
PINV_CUTOFF = 1e-15  # as numpy.linalg.pinv: eigenvalues below this fraction of the largest one count as zero
CONSTANT = 1e-7  # a canonical variable that varies less than this fraction of the strongest one is rounding error


@dataclass(frozen=True)
class CcaSettings:
    """The protocol; the defaults are those of Pasad et al.

    ``weights``: ``published`` follows Morcos et al. ``layerwise-analysis`` follows the repository of this name: it
    adds the means of the raw view to its canonical variables before orthogonalising them. The score then depends on
    the signs of the canonical variables, which are arbitrary.
    """

    num_splits: int = 10
    num_trials: int = 3
    num_epsilon_pairs: int = 6
    weights: str = "published"
    seed: int = 0

    def __post_init__(self):
        if self.weights not in WEIGHTS:
            raise ValueError(f"weights: expected one of {WEIGHTS}, found {self.weights!r}.")
        if self.num_splits < 3 or not 1 <= self.num_trials <= self.num_splits // 2:
            raise ValueError(
                f"{self.num_trials} trials with a dev and a test split each do not fit into {self.num_splits} splits."
            )


# --- Fitting ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Projection:
    """Maps a view to its canonical variables: a mask of the dimensions used ``[X]``, their means, and a matrix."""

    kept: np.ndarray
    mean: np.ndarray
    matrix: np.ndarray

    def __call__(self, view: np.ndarray) -> np.ndarray:
        """Raw samples ``[N, X]`` -> canonical variables ``[N, C]``, the most correlated first."""
        return (view[:, self.kept] - self.mean) @ self.matrix


class Cca(NamedTuple):
    x: Projection
    y: Projection
    correlations: np.ndarray  # [C], on the training samples


class TrainingViews:
    """Means and covariances of two views ``[N, X]`` and ``[N, Y]``, from which CCA is fitted with several epsilons."""

    def __init__(self, x: np.ndarray, y: np.ndarray):
        self.means = x.mean(axis=0, dtype=np.float64), y.mean(axis=0, dtype=np.float64)
        centred = x - self.means[0], y - self.means[1]
        scatter = [view.T @ view / (len(view) - 1) for view in centred]
        scales = [np.abs(covariance).max() for covariance in scatter]
        if not all(scale > 0 for scale in scales):  # nor is NaN, which also infinite features come to
            raise ValueError("A view is constant or not finite: there is nothing to correlate.")
        self.covariances = [covariance / scale for covariance, scale in zip(scatter, scales)]
        self.cross = centred[0].T @ centred[1] / (len(x) - 1) / np.sqrt(scales[0] * scales[1])
        self._whitenings: Dict[Tuple[int, float], Tuple[np.ndarray, np.ndarray]] = {}

    def fit(self, epsilon_x: float, epsilon_y: float) -> Cca:
        """CCA of the dimensions whose (scaled) variances reach the epsilons.

        Raises:
            numpy.linalg.LinAlgError: no solution with these epsilons.
        """
        kept_x, whiten_x = self._whitening(0, epsilon_x)
        kept_y, whiten_y = self._whitening(1, epsilon_y)
        cross = self.cross[np.ix_(kept_x, kept_y)]
        left, correlations, right = np.linalg.svd(whiten_x @ cross @ whiten_y, full_matrices=False)
        return Cca(
            Projection(kept_x, self.means[0][kept_x], whiten_x @ left),
            Projection(kept_y, self.means[1][kept_y], whiten_y @ right.T),
            correlations,
        )

    def _whitening(self, view: int, epsilon: float) -> Tuple[np.ndarray, np.ndarray]:
        """The dimensions that are kept, and the inverse square root of their covariance plus ``epsilon``."""
        if (view, epsilon) not in self._whitenings:
            kept = np.diag(self.covariances[view]) >= epsilon
            covariance = self.covariances[view][np.ix_(kept, kept)] + epsilon * np.eye(kept.sum())
            self._whitenings[view, epsilon] = kept, inverse_square_root(covariance)
        return self._whitenings[view, epsilon]


def inverse_square_root(covariance: np.ndarray) -> np.ndarray:
    """Square root of the pseudo-inverse of a symmetric ``[X, X]``; raises ``LinAlgError`` if it is not real."""
    values, vectors = np.linalg.eigh(covariance)
    used = np.abs(values) > PINV_CUTOFF * np.abs(values).max()
    if (values[used] < 0).any():
        raise np.linalg.LinAlgError("a covariance is not positive")
    return (vectors[:, used] / np.sqrt(values[used])) @ vectors[:, used].T


# --- Scoring ---------------------------------------------------------------------------------------------------------


def held_out_pwcca(cca: Cca, x: np.ndarray, y: np.ndarray, weights: str = "published") -> float:
    """PWCCA of samples ``[N, X]``, ``[N, Y]`` that ``cca`` has not seen, weighted in the view with fewer dimensions.

    An invertible linear map of either view changes no correlation; if it is of the wider view, it changes no weight
    either. Scores for 500 words therefore do not depend on the basis of 768 features. With an encoder of fewer than
    500 dimensions they do, and they say how much of the features the words explain rather than the reverse.
    """
    canonical_x, canonical_y = cca.x(x), cca.y(y)
    lower_is_x = cca.x.kept.sum() <= cca.y.kept.sum()
    canonical, raw = (canonical_x, x[:, cca.x.kept]) if lower_is_x else (canonical_y, y[:, cca.y.kept])
    alpha = projection_weights(canonical, raw, weights)
    return float(alpha @ column_correlations(canonical_x, canonical_y))


def column_correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson correlation ``[C]`` of each column of ``[N, C]`` with its counterpart; 0 if one of them is constant."""
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    norm_a, norm_b = np.linalg.norm(a, axis=0), np.linalg.norm(b, axis=0)
    varies = (norm_a > CONSTANT * norm_a.max()) & (norm_b > CONSTANT * norm_b.max())
    return np.where(varies, (a * b).sum(axis=0) / np.where(varies, norm_a * norm_b, 1), 0.0)


def projection_weights(canonical: np.ndarray, raw: np.ndarray, weights: str = "published") -> np.ndarray:
    """Weights ``[C]``, with sum 1, of the canonical variables ``[N, C]`` of a raw view ``[N, X]``.

    On samples that the CCA was not fitted on, canonical variables are not quite uncorrelated. As in the code of Morcos
    et al., QR makes them so first. A variable that depends on earlier ones (a unit without held-out samples) has
    weight 0.
    """
    canonical = canonical - canonical.mean(axis=0)
    if weights == "layerwise-analysis":
        canonical = canonical + raw.mean(axis=0)[: canonical.shape[1]]
    else:
        raw = raw - raw.mean(axis=0)
    orthonormal, _ = np.linalg.qr(canonical)
    alpha = np.abs(orthonormal.T @ raw).sum(axis=1)
    return alpha / alpha.sum()


# --- Protocol --------------------------------------------------------------------------------------------------------


def stratified_splits(unit: np.ndarray, num_splits: int, rng: np.random.Generator) -> np.ndarray:
    """Split number ``[N]`` of each sample: those of each unit, and all of them, are spread as evenly as possible."""
    order = np.concatenate([rng.permutation(np.flatnonzero(unit == value)) for value in np.unique(unit)])
    splits = np.empty(len(unit), np.int64)
    splits[order] = np.arange(len(unit)) % num_splits  # dealt in turn; each unit continues where the last one ended
    return splits


def split_pairs(num_splits: int, num_trials: int, rng: np.random.Generator) -> List[Tuple[int, int]]:
    """A (dev, test) pair of splits for each trial; no split is used twice."""
    drawn = rng.permutation(num_splits)[: 2 * num_trials].tolist()
    return list(zip(drawn[::2], drawn[1::2]))


def epsilon_pairs(rng: np.random.Generator) -> Iterator[Tuple[float, float]]:
    """Pairs to try, in order: all pairs of the first epsilons, shuffled, then all pairs of the next."""
    for epsilons in (FIRST_EPSILONS, NEXT_EPSILONS):
        pairs = list(itertools.product(epsilons, repeat=2))
        yield from (pairs[index] for index in rng.permutation(len(pairs)))


class Trial(NamedTuple):
    score: float  # PWCCA on the test split
    dev_score: float
    epsilon_x: float
    epsilon_y: float


def score_views(x: np.ndarray, unit: np.ndarray, settings: CcaSettings = CcaSettings()) -> List[Trial]:
    """Held-out PWCCA of features ``[N, X]`` with the one-hot identity of their units ``[N]``, for each trial.

    The splits depend only on ``unit`` and the seed, so that layers and models are compared on the same splits.

    Raises:
        ValueError: fewer samples than dimensions, constant features, or no solution.
    """
    identity = one_hot(unit)
    check_counts(len(x), x.shape[1], identity.shape[1], settings)
    rng = np.random.default_rng(settings.seed)
    splits = stratified_splits(unit, settings.num_splits, rng)
    pairs = split_pairs(settings.num_splits, settings.num_trials, rng)
    x = x.astype(np.float64)
    return [_run_trial(x, identity, splits, dev, test, settings, rng) for dev, test in pairs]


def _run_trial(x, y, splits, dev: int, test: int, settings: CcaSettings, rng: np.random.Generator) -> Trial:
    """Fit on all splits except ``dev`` and ``test``, choose the epsilons on ``dev``, score on ``test``."""
    train = (splits != dev) & (splits != test)
    views = TrainingViews(x[train], y[train])
    best, fitted = None, 0
    for epsilons in epsilon_pairs(rng):
        if fitted == settings.num_epsilon_pairs:
            break
        try:
            cca = views.fit(*epsilons)
        except np.linalg.LinAlgError:
            continue
        fitted += 1
        dev_score = held_out_pwcca(cca, x[splits == dev], y[splits == dev], settings.weights)
        if best is None or dev_score > best[0]:
            best = dev_score, epsilons, cca
    if best is None:
        raise ValueError("CCA has no solution with any epsilon: the features are constant, or wild in scale.")
    dev_score, epsilons, cca = best
    return Trial(held_out_pwcca(cca, x[splits == test], y[splits == test], settings.weights), dev_score, *epsilons)


def one_hot(unit: np.ndarray) -> np.ndarray:
    """One-hot identity ``[N, K]`` of samples of the K units that occur."""
    return (unit[:, None] == np.unique(unit)).astype(np.float64)


def check_counts(num_samples: int, num_features: int, num_units: int, settings: CcaSettings = CcaSettings()) -> None:
    """Raise ``ValueError`` if training or a held-out split does not have more samples than dimensions."""
    held_out = num_samples // settings.num_splits
    train = num_samples - 2 * -(-num_samples // settings.num_splits)
    lower, higher = sorted((num_features, num_units))
    if num_units < 2:
        raise ValueError(f"{num_units} unit(s): CCA with their identity needs two at least.")
    if train <= higher or held_out <= lower:
        raise ValueError(
            f"{num_samples} samples of {num_units} units for {num_features} features: {settings.num_splits} splits "
            f"leave {train} samples to fit (more than {higher} are needed) and {held_out} in a held-out split (more "
            f"than {lower} are needed). Give more audio, raise --instances, or lower --top."
        )
