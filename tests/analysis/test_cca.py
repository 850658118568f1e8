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

"""CCA against closed forms and two independent implementations; weights against the published formula; splits."""

from contextlib import nullcontext

import numpy as np
import pytest
from scipy.linalg import eigh
from sklearn.cross_decomposition import CCA as SklearnCCA

from nemo_mshubert.analysis.cca import (
    CONSTANT,
    FIRST_EPSILONS,
    CcaSettings,
    TrainingViews,
    check_counts,
    column_correlations,
    epsilon_pairs,
    held_out_pwcca,
    inverse_square_root,
    one_hot,
    projection_weights,
    score_views,
    split_pairs,
    stratified_splits,
)

pytestmark = pytest.mark.unit
EPSILON = 1e-10


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def related_views(rng, num_samples, x_dims=6, y_dims=4):
    """Views that share four sources, each with noise of its own, so that no two correlations are alike."""
    sources = rng.normal(size=(num_samples, 4))
    mix = np.random.default_rng(7)
    x = sources @ mix.normal(size=(4, x_dims)) + mix.uniform(0.2, 2, x_dims) * rng.normal(size=(num_samples, x_dims))
    y = sources * [1, 0.8, 0.6, 0.4] @ mix.normal(size=(4, y_dims)) + 0.5 * rng.normal(size=(num_samples, y_dims))
    return x + 3, y - 1


def words(num_words=30, instances=20):
    return np.repeat(np.arange(num_words), instances)


# --- Closed forms ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["published", "layerwise-analysis"])
def test_identical_views_give_one(rng, weights):
    train, test = rng.normal(size=(300, 8)) @ rng.normal(size=(8, 8)), rng.normal(size=(60, 8))
    cca = TrainingViews(train, train).fit(EPSILON, EPSILON)
    np.testing.assert_allclose(cca.correlations, 1, atol=1e-6)
    assert held_out_pwcca(cca, test, test, weights) == pytest.approx(1, abs=1e-9)


def test_features_that_are_the_word_give_one(rng):
    """Any invertible map of the one-hot identity: every trial scores 1, and one shared by two words lowers it."""
    unit = words()
    features = one_hot(unit) @ rng.normal(size=(30, 30))
    assert [trial.score for trial in score_views(features, unit)] == pytest.approx([1, 1, 1], abs=1e-6)
    merged = one_hot(unit // 2) @ rng.normal(size=(15, 40))  # tells 15 of 30 words apart
    assert [trial.score for trial in score_views(merged, unit)] == pytest.approx([0.5] * 3, abs=0.05)


def test_independent_views_are_at_chance_on_held_out_data_only(rng):
    unit = words()
    features = rng.normal(size=(len(unit), 25))
    train = TrainingViews(features, one_hot(unit)).fit(EPSILON, EPSILON)
    assert held_out_pwcca(train, features, one_hot(unit)) > 0.15  # the same numbers on what was fitted: overfitting
    scores = [trial.score for seed in range(5) for trial in score_views(features, unit, CcaSettings(seed=seed))]
    # A correlation of 60 samples has a standard deviation of 1 / sqrt(60); a score averages over 25 of them.
    assert abs(np.mean(scores)) < 3 / np.sqrt(60 * 25)
    assert np.abs(scores).max() < 4 / np.sqrt(60 * 25)


def test_more_word_information_gives_a_higher_score(rng):
    unit, prototypes, noise = words(), rng.normal(size=(30, 25)), rng.normal(size=(600, 25))
    scores = [np.mean([t.score for t in score_views(a * prototypes[unit] + noise, unit)]) for a in (0.1, 0.5, 2)]
    assert scores == sorted(scores) and scores[0] < 0.3 and scores[-1] > 0.8


def test_invertible_linear_maps_and_shifts_change_nothing(rng):
    unit = words()
    features = 0.5 * rng.normal(size=(30, 40))[unit] + rng.normal(size=(len(unit), 40))
    scores = [trial.score for trial in score_views(features, unit)]
    mapped = features @ rng.normal(size=(40, 40)) * 50 + rng.normal(size=40)
    assert [trial.score for trial in score_views(mapped, unit)] == pytest.approx(scores, abs=1e-5)
    flattened = features @ np.diag([1] * 32 + [0] * 8)  # not invertible: the score must not stay
    assert np.mean([trial.score for trial in score_views(flattened, unit)]) < np.mean(scores) - 0.02


def test_invertible_maps_of_the_narrower_view_change_its_weights_only(rng):
    x, y = related_views(rng, 400, x_dims=4, y_dims=7)
    mapped = x @ np.array([[9, 1, 0, 0], [0, 1, 0, 0], [0, 3, 2, 0], [0, 0, 0, 1]])
    before, after = (TrainingViews(view, y).fit(EPSILON, EPSILON) for view in (x, mapped))
    rho = column_correlations(before.x(x), before.y(y))
    np.testing.assert_allclose(column_correlations(after.x(mapped), after.y(y)), rho, atol=1e-6)
    assert abs(held_out_pwcca(before, x, y) - held_out_pwcca(after, mapped, y)) > 1e-3


def test_swapped_views_give_the_same_correlations(rng):
    x, y = related_views(rng, 400)
    forth, back = TrainingViews(x, y).fit(EPSILON, EPSILON), TrainingViews(y, x).fit(EPSILON, EPSILON)
    np.testing.assert_allclose(forth.correlations, back.correlations, atol=1e-9)
    assert held_out_pwcca(forth, x, y) == pytest.approx(held_out_pwcca(back, y, x), abs=1e-9)


# --- Independent implementations -------------------------------------------------------------------------------------


def generalized_eigenproblem(x, y):
    """Canonical correlations and directions of the first view: Sxy Syy^-1 Syx a = rho^2 Sxx a."""
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    cross = x.T @ y
    squares, directions = eigh(cross @ np.linalg.solve(y.T @ y, cross.T), x.T @ x)
    order = np.argsort(-squares)[: min(x.shape[1], y.shape[1])]
    return np.sqrt(squares[order]), directions[:, order]


def test_agrees_with_the_generalized_eigenproblem(rng):
    x, y = related_views(rng, 400)
    cca = TrainingViews(x, y).fit(EPSILON, EPSILON)
    correlations, directions = generalized_eigenproblem(x, y)
    np.testing.assert_allclose(cca.correlations, correlations, atol=1e-6)
    ours, theirs = cca.x(x), (x - x.mean(axis=0)) @ directions
    np.testing.assert_allclose(np.abs(column_correlations(ours, theirs)), 1, atol=1e-6)
    rows = [slice(0, -1), slice(1, None)]  # CCA of samples that do not belong together is something else
    assert np.abs(generalized_eigenproblem(x[rows[0]], y[rows[1]])[0] - correlations).max() > 0.1


def test_agrees_with_scikit_learn(rng):
    """Correlations on training and on held-out samples, and so the score."""
    x, y = related_views(rng, 400)
    x_new, y_new = related_views(rng, 100)
    cca = TrainingViews(x, y).fit(EPSILON, EPSILON)
    theirs = SklearnCCA(n_components=4, scale=False, max_iter=100_000, tol=1e-15).fit(x, y)
    np.testing.assert_allclose(cca.correlations, column_correlations(*theirs.transform(x, y)), atol=1e-6)
    their_x, their_y = theirs.transform(x_new, y_new)
    np.testing.assert_allclose(
        column_correlations(cca.x(x_new), cca.y(y_new)), column_correlations(their_x, their_y), atol=1e-6
    )
    alpha = published_weights(their_y, y_new)
    expected = alpha @ column_correlations(their_x, their_y)
    assert held_out_pwcca(cca, x_new, y_new) == pytest.approx(expected, abs=1e-6)


def test_inverse_square_root(rng):
    factor = rng.normal(size=(5, 5))
    covariance = factor @ factor.T
    root = inverse_square_root(covariance)
    np.testing.assert_allclose(root @ covariance @ root, np.eye(5), atol=1e-9)
    np.testing.assert_allclose(root, root.T, atol=1e-12)
    np.testing.assert_allclose(inverse_square_root(np.diag([4.0, 0.0])), np.diag([0.5, 0.0]))  # pseudo-inverse
    np.testing.assert_allclose(inverse_square_root(np.diag([1.0, 1e-12])), np.diag([1.0, 1e6]))  # little is not zero
    with pytest.raises(np.linalg.LinAlgError):
        inverse_square_root(np.diag([1.0, -0.1]))


# --- PWCCA's weights -------------------------------------------------------------------------------------------------


def gram_schmidt(columns):
    basis = []
    for column in columns.T:
        for other in basis:
            column = column - (column @ other) * other
        basis.append(column / np.linalg.norm(column))
    return np.array(basis)


def published_weights(canonical, raw):
    """Morcos et al. 2018, section 3: alpha_i = sum over neurons j of |<h_i, x_j>|, the h_i orthonormal."""
    canonical, raw = canonical - canonical.mean(axis=0), raw - raw.mean(axis=0)
    alpha = [sum(abs(h @ neuron) for neuron in raw.T) for h in gram_schmidt(canonical)]
    return np.array(alpha) / sum(alpha)


def test_weights_are_those_published(rng):
    x, y = related_views(rng, 400)
    x_new, y_new = related_views(rng, 100)
    cca = TrainingViews(x, y).fit(EPSILON, EPSILON)
    expected = published_weights(cca.y(y_new), y_new)
    np.testing.assert_allclose(projection_weights(cca.y(y_new), y_new), expected, atol=1e-12)
    assert expected.max() - expected.min() > 0.01  # not the plain mean
    flipped = cca.y(y_new) * [1, -1, 1, -1]  # signs are arbitrary
    np.testing.assert_allclose(projection_weights(flipped, y_new), expected, atol=1e-12)
    rho = column_correlations(cca.x(x_new), cca.y(y_new))
    assert held_out_pwcca(cca, x_new, y_new) == pytest.approx(sum(expected * rho), abs=1e-12)


def test_weights_of_the_repository_add_raw_means(rng):
    x, y = related_views(rng, 400)
    x_new, y_new = related_views(rng, 100)
    cca = TrainingViews(x, y).fit(EPSILON, EPSILON)
    canonical = cca.y(y_new)
    shifted = canonical - canonical.mean(axis=0) + y_new.mean(axis=0)
    alpha = [sum(abs(h @ neuron) for neuron in y_new.T) for h in gram_schmidt(shifted)]
    ours = projection_weights(canonical, y_new, "layerwise-analysis")
    np.testing.assert_allclose(ours, np.array(alpha) / sum(alpha), atol=1e-12)
    assert np.abs(ours - projection_weights(canonical, y_new)).max() > 0.01


def test_weights_come_from_the_view_of_fewer_dimensions(rng):
    x, y = related_views(rng, 400, x_dims=4, y_dims=7)
    cca = TrainingViews(x, y).fit(EPSILON, EPSILON)
    rho = column_correlations(cca.x(x), cca.y(y))
    assert held_out_pwcca(cca, x, y) == pytest.approx(published_weights(cca.x(x), x) @ rho, abs=1e-9)


@pytest.mark.parametrize("extended", [0, 1])
def test_what_was_constant_in_training_has_no_weight(rng, extended):
    """A dead feature that wakes, or a word that only held-out samples have: nothing was learnt of it, and the score
    would follow its size."""
    x_dims = (4, 6)[extended]  # the second view has four: the one that is extended gives the weights
    train, test = related_views(rng, 400, x_dims), related_views(rng, 100, x_dims)
    longer = [list(train), list(test)]
    for views, column in zip(longer, (np.zeros(400), 9 * rng.normal(size=100))):
        views[extended] = np.insert(views[extended], 1, column, axis=1)
    expected = held_out_pwcca(TrainingViews(*train).fit(EPSILON, EPSILON), *test)
    assert held_out_pwcca(TrainingViews(*longer[0]).fit(EPSILON, EPSILON), *longer[1]) == pytest.approx(expected)


def test_what_does_not_vary_does_not_count(rng):
    """The one-hot view is singular, and a word may be absent from a held-out split: both weigh nothing."""
    unit = words(10, 30)
    features = one_hot(unit) @ rng.normal(size=(10, 12)) + 0.1 * rng.normal(size=(300, 12))
    cca = TrainingViews(features, one_hot(unit)).fit(EPSILON, EPSILON)
    rows = unit != 3
    alpha = projection_weights(cca.y(one_hot(unit)[rows]), one_hot(unit)[rows])
    assert alpha.shape == (10,) and (alpha[:8] > 0.01).all() and (alpha[8:] < CONSTANT).all()
    rho = column_correlations(cca.x(features), cca.y(one_hot(unit)))
    assert np.isfinite(rho).all() and rho[-1] == 0


# --- Protocol --------------------------------------------------------------------------------------------------------


def test_splits_are_stratified_and_disjoint(rng):
    unit = np.concatenate([words(7, 15), np.repeat(7, 4), np.repeat(8, 20), [9]])
    splits = stratified_splits(unit, 10, rng)
    assert splits.shape == unit.shape  # one split per sample: disjoint, and all are used
    for value in np.unique(unit):
        counts = np.bincount(splits[unit == value], minlength=10)
        assert counts.max() - counts.min() <= 1, value
    sizes = np.bincount(splits, minlength=10)
    assert sizes.max() - sizes.min() <= 1
    assert not np.array_equal(splits, stratified_splits(unit, 10, np.random.default_rng(1)))
    assert np.array_equal(splits, stratified_splits(unit, 10, np.random.default_rng(0)))


def test_trials_use_different_dev_and_test_splits(rng):
    pairs = split_pairs(10, 3, rng)
    assert len(pairs) == 3 and len({split for pair in pairs for split in pair}) == 6
    assert {split for pair in pairs for split in pair} <= set(range(10))


def test_epsilons_are_tried_in_the_published_order(rng):
    pairs = list(epsilon_pairs(rng))
    assert len(pairs) == len(set(pairs)) == 9 + 16
    assert all(set(pair) <= set(FIRST_EPSILONS) for pair in pairs[:9])
    assert {epsilon for pair in pairs[9:] for epsilon in pair} == {1e-8, 1e-7, 1e-6, 1e-5}
    again = list(epsilon_pairs(rng))  # six are tried: always the same would leave out 1e-9
    assert again[:9] != pairs[:9] and again[9:] != pairs[9:] and sorted(again) == sorted(pairs)


def test_epsilons_are_chosen_on_dev_among_six_that_work(rng, monkeypatch):
    """Pairs without a solution do not count; the best dev score wins, whatever the test split says."""
    tried = []

    def fit(self, *epsilons):
        tried.append(epsilons)
        if len(tried) % 2:
            raise np.linalg.LinAlgError
        return epsilons

    def score(cca, x, y, weights):
        return -abs(np.log10(cca[0]) + 10) - 0.1 * abs(np.log10(cca[1]) + 10)  # best at 1e-10

    monkeypatch.setattr("nemo_mshubert.analysis.cca.TrainingViews.fit", fit)
    monkeypatch.setattr("nemo_mshubert.analysis.cca.held_out_pwcca", score)
    unit = words()
    (trial,) = score_views(rng.normal(size=(len(unit), 5)), unit, CcaSettings(num_trials=1))
    worked = tried[1::2]
    assert len(worked) == 6
    assert (trial.epsilon_x, trial.epsilon_y) == max(worked, key=lambda epsilons: score(epsilons, None, None, None))


def test_the_test_split_is_seen_by_neither_fit_nor_choice(rng, monkeypatch):
    seen = {"fit": [], "score": []}
    init, unit = TrainingViews.__init__, words()
    features = np.arange(len(unit))[:, None] + rng.normal(size=(len(unit), 5)) * 0.1  # a row tells its number

    def spy_init(self, x, y):
        seen["fit"].append(set(np.round(x.mean(axis=1)).astype(int)))
        init(self, x, y)

    def spy_score(cca, x, y, weights):
        seen["score"].append(set(np.round(x.mean(axis=1)).astype(int)))
        return 0.0

    monkeypatch.setattr("nemo_mshubert.analysis.cca.TrainingViews.__init__", spy_init)
    monkeypatch.setattr("nemo_mshubert.analysis.cca.held_out_pwcca", spy_score)
    score_views(features, unit, CcaSettings(num_trials=1))
    *dev, test = seen["score"]
    assert len(dev) == 6 and all(rows == dev[0] for rows in dev)
    assert not dev[0] & test and not seen["fit"][0] & (dev[0] | test)
    assert len(seen["fit"][0] | dev[0] | test) == len(unit)


def test_the_same_seed_gives_the_same_score(rng):
    unit = words()
    features = rng.normal(size=(30, 12))[unit] + rng.normal(size=(len(unit), 12))
    assert score_views(features, unit) == score_views(features, unit)
    assert score_views(features, unit) != score_views(features, unit, CcaSettings(seed=1))


# --- Errors ----------------------------------------------------------------------------------------------------------


def test_samples_below_dimensions():
    check_counts(6000, 768, 500)
    with pytest.raises(
        ValueError, match="900 samples of 20 units for 768 features.*720 samples to fit.*more than 768"
    ):
        check_counts(900, 768, 20)
    with pytest.raises(ValueError, match="400 in a held-out split.*more than 500.*raise --instances, or lower --top"):
        check_counts(4000, 768, 500)
    with pytest.raises(ValueError, match="1 unit"):
        check_counts(4000, 24, 1)


@pytest.mark.parametrize(
    "samples, features, units, suffices",
    [(100, 9, 79, True), (100, 10, 79, False), (100, 9, 80, False), (101, 9, 79, False), (109, 10, 79, False)],
)
def test_as_many_samples_as_dimensions_are_too_few(samples, features, units, suffices):
    """Ten splits of 100 leave 80 and 10; of 101, two of eleven leave 79; of 109, one has 10. With as many
    dimensions all correlates."""
    with nullcontext() if suffices else pytest.raises(ValueError, match="are needed"):
        check_counts(samples, features, units)


def test_dimensions_below_epsilon_are_left_out(rng):
    """As in the code of Raghu et al.: their inverse would be noise. Variances are parts of the largest one."""
    x = rng.normal(size=(500, 3)) * [10, 0.04, 0.02]
    y = rng.normal(size=(500, 2))
    assert TrainingViews(x, y).fit(1e-5, 1e-5).x.kept.tolist() == [True, True, False]


def test_features_without_a_solution(rng):
    unit = words()
    with pytest.raises(ValueError, match="constant or not finite"):
        score_views(np.ones((len(unit), 5)), unit)
    features = rng.normal(size=(len(unit), 5))
    for wild in (np.nan, np.inf):
        features[7, 2] = wild
        with pytest.raises(ValueError, match="constant or not finite"):
            score_views(features, unit)


def test_dead_features_do_not_make_a_view_the_wider_one(rng):
    """The weights are those of the narrower view: an encoder with dead dimensions would be scored by other weights
    than one without."""
    unit = words(num_words=12)
    features = one_hot(unit) @ rng.normal(size=(12, 8)) + rng.normal(size=(len(unit), 8))
    dead = np.concatenate([features, np.full((len(unit), 10), 5.0)], axis=1)
    settings = CcaSettings(num_splits=5, num_trials=2)
    expected = [trial.score for trial in score_views(features, unit, settings)]
    assert [trial.score for trial in score_views(dead, unit, settings)] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("constant", [0, 1])
def test_rounding_errors_do_not_correlate(rng, constant):
    """A word or a feature that a held-out split lacks: what is left of it is noise of 1e-16, which may correlate to
    1."""
    views = [rng.normal(size=(50, 2)), rng.normal(size=(50, 2))]
    views[constant][:, 1] = 1e-12 * views[1 - constant][:, 1]
    found = column_correlations(*views)
    assert found[0] == pytest.approx(np.corrcoef(views[0][:, 0], views[1][:, 0])[0, 1])
    assert found[1] == 0


def test_a_constant_feature_is_dropped(rng):
    unit = words()
    features = rng.normal(size=(30, 12))[unit] + rng.normal(size=(len(unit), 12))
    with_constant = np.concatenate([features, np.full((len(unit), 1), 5.0)], axis=1)
    expected = [trial.score for trial in score_views(features, unit)]
    assert [trial.score for trial in score_views(with_constant, unit)] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("bad", [dict(num_trials=6), dict(num_trials=0), dict(num_splits=2, num_trials=1)])
def test_impossible_settings(bad):
    with pytest.raises(ValueError, match="do not fit"):
        CcaSettings(**bad)
    with pytest.raises(ValueError, match="weights: expected one of"):
        CcaSettings(weights="other")
