"""Objects for scikit-learn: its own checks, and series of one channel, of several, and of unequal lengths."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="needs the extra sklearn")

from sklearn.base import clone
from sklearn.exceptions import SkipTestWarning
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import check_estimator

from linnet.sklearn import SeriesClassifier, SeriesForecaster

SMALL = ("model.kernels=[5]", "model.fixed=[2]", "model.width=8", "model.depth=1", "model.kernel=3")
THIN = ("model.blocks=1", "model.layers=1", "model.width=8")


def classifier(steps: int = 60) -> SeriesClassifier:
    return SeriesClassifier(settings=(*SMALL, "model.members=1"), steps=steps)


def forecaster(steps: int = 5, horizon: int = 0) -> SeriesForecaster:
    return SeriesForecaster(horizon=horizon, settings=THIN, steps=steps)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", [classifier(3), forecaster(3)], ids=["classifier", "forecaster"])
def test_scikit_learns_own_checks_pass(estimator: SeriesClassifier | SeriesForecaster) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkipTestWarning)
        found = check_estimator(estimator, on_fail=None)
    failed = {one["check_name"]: one["exception"] for one in found if one["status"] == "failed"}
    assert not failed and sum(one["status"] == "passed" for one in found) > 35


def waves(seed: int = 0, cases: int = 60, channels: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Two classes that differ in how fast the first channel swings."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, cases)
    steps = np.arange(40)
    speed = np.where(y, 0.9, 0.3)[:, None]
    X = rng.normal(0, 0.3, (cases, channels, 40))
    X[:, 0] += np.sin(speed * steps + rng.uniform(0, 6, (cases, 1)))
    return X, np.array(["slow", "fast"])[y]


def test_a_classifier_learns_names_from_channels_and_can_be_stored_and_searched() -> None:
    X, y = waves()
    fitted = classifier().fit(X[:40], y[:40])
    found = fitted.predict_proba(X[40:])
    assert fitted.classes_.tolist() == ["fast", "slow"]
    assert found.sum(1) == pytest.approx(np.ones(20)) and fitted.score(X[40:], y[40:]) > 0.8
    again = pickle.loads(pickle.dumps(fitted))
    assert np.array_equal(again.predict_proba(X[40:]), found)
    assert np.array_equal(clone(fitted).fit(X[:40], y[:40]).predict_proba(X[40:]), found)
    pipeline = make_pipeline(FunctionTransformer(lambda X: 1e3 + 8 * X), classifier(20))
    scores = cross_val_score(pipeline, X, y, cv=2)
    assert scores == pytest.approx(cross_val_score(classifier(20), X, y, cv=2), abs=0.05), (
        "levels and units are free"
    )


def test_lists_of_unequal_lengths_equal_arrays_where_lengths_are_equal() -> None:
    X, y = waves(cases=30)
    cut = [case[:, : 20 + index] for index, case in enumerate(X)]
    found = classifier(10).fit(cut, y).predict_proba(cut)
    assert found.shape == (30, 2) and np.isfinite(found).all()
    as_array, as_list = classifier(5).fit(X, y), classifier(5).fit(list(X), y)
    assert np.array_equal(as_array.predict_proba(X), as_list.predict_proba(list(X)))
    gaps = X.copy()
    gaps[3, 1] = np.nan
    gaps[4] = np.nan
    assert classifier(3).fit(gaps, y).predict_proba(gaps).shape == (30, 2), "no case is lost"


def test_cases_of_one_group_stay_together() -> None:
    X, y = waves(cases=24)
    groups = np.repeat(np.arange(6), 4)
    one, other = classifier(3).fit(X, y, groups=groups), classifier(3).fit(X, y)
    assert not np.array_equal(one.predict_proba(X), other.predict_proba(X))


@pytest.mark.parametrize(
    ("X", "y", "message"),
    [
        (np.zeros((3, 2)), ["a", "a", "a"], "one class"),
        (np.full((3, 2), np.inf), ["a", "b", "a"], "infinity"),
        ([np.zeros((2, 3)), np.zeros((1, 3))], ["a", "b"], "case 1 has the shape"),
        ([np.full((1, 3), np.inf), np.zeros((1, 3))], ["a", "b"], "case 0 has an infinite value"),
        (np.zeros((2, 2, 2, 2)), ["a", "b"], "cases x channels x time"),
    ],
)
def test_wrong_input_is_a_value_error_in_words(X: np.ndarray, y: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        classifier(1).fit(X, np.array(y))
    with pytest.raises(ValueError, match="model.nothing"):
        SeriesClassifier(settings=("model.nothing=1",)).fit(*waves())


@pytest.mark.parametrize("recipe", ["forecast", "forecast-tokens", "arithmetic"])
def test_recipes_and_options_that_do_not_fit_are_value_errors(recipe: str) -> None:
    X, y = waves(cases=6)
    with pytest.raises(ValueError, match="no recipe for SeriesClassifier; classify is one"):
        SeriesClassifier(recipe).fit(X, y)
    with pytest.raises(ValueError, match="no recipe for SeriesForecaster; forecast is one"):
        SeriesForecaster("classify").fit(X)
    with pytest.raises(ValueError, match="horizon is -1"):
        forecaster(horizon=-1).fit(X)
    with pytest.raises(ValueError, match="6 cases, and groups has 5"):
        classifier(1).fit(X, y, groups=np.arange(5))


def test_the_forecast_of_nothing_is_no_number() -> None:
    X = np.arange(24.0).reshape(2, 12)
    found = forecaster(horizon=3).fit(X).predict(np.where([[True], [False]], X, np.nan))
    assert np.isfinite(found[0]).all() and np.isnan(found[1]).all()


def test_a_forecaster_continues_every_channel_of_every_case() -> None:
    rng = np.random.default_rng(0)
    X = 1e3 + np.cumsum(rng.normal(size=(12, 2, 50)), -1)
    fitted = forecaster(horizon=4).fit(X)
    found = fitted.predict(X)
    assert found.shape == (12, 2, 4) and np.abs(found - X[..., -1:]).max() < 50
    quantiles = fitted.predict_quantiles(X, [0.1, 0.5, 0.9])
    assert quantiles.shape == (12, 2, 4, 3) and np.array_equal(quantiles[..., 1], found)
    assert (np.diff(quantiles, axis=-1) > 0).all()
    alone = fitted.predict(X[3:4, :, -7:])
    assert alone.shape == (1, 2, 4), "a shorter history will do"
    flat = forecaster(horizon=4).fit(X[:, 0])
    assert flat.predict(X[:, 0]).shape == (12, 4)
    with pytest.raises(ValueError, match="levels lie between"):
        fitted.predict_quantiles(X, [0.0])


def test_what_came_after_sets_the_horizon_and_is_learned_from() -> None:
    X = np.random.default_rng(1).normal(size=(20, 30)) + 9
    assert forecaster().fit(X[:, :24], X[:, 24:]).predict(X[:, :24]).shape == (20, 6)
    assert forecaster().fit(X[:, :29], X[:, 29]).predict(X[:, :29]).shape == (20,)
    with pytest.raises(ValueError, match="does not go on with the channels"):
        forecaster().fit(list(X[:, None]), np.zeros((20, 3, 2)))
