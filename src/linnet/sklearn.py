"""Classifiers and forecasters of series for scikit-learn, its pipelines and its searches.

    from linnet.sklearn import SeriesClassifier, SeriesForecaster
    SeriesClassifier().fit(X, y).predict_proba(X)
    SeriesForecaster(horizon=12).fit(X).predict_quantiles(X, [0.1, 0.9])

X is an array of cases x channels x time, an array of cases x time (one channel), or a list of arrays channels x
time of any lengths. NaN is a missing value. Each fit trains a recipe in memory, as `linnet train` does from files,
and is the same for the same `random_state`. Needs scikit-learn: pip install 'linnet-sequences[sklearn]'.
Legend: n = cases, C = channels, T = steps, H = horizon, Q = levels, K = classes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data

from linnet.domains.contract import Material
from linnet.domains.series.codec import SeriesCodec
from linnet.domains.series.data import SeriesData
from linnet.domains.series.forecasts import Forecasts, forecast, forecast_material
from linnet.domains.series.labelling import label_material, probabilities
from linnet.domains.series.labels import labelled_windows
from linnet.domains.series.tables import Series, SeriesTable
from linnet.errors import BadInput
from linnet.training.resolve import settle
from linnet.training.run import Run
from linnet.workbench.train import prepare, train_in_memory

BATCH = 256
RULES = {"ensure_2d": False, "allow_nd": True, "dtype": np.float64, "ensure_all_finite": "allow-nan"}
Cases = list[np.ndarray]  # [C, T] each


@dataclass(frozen=True)
class _Given:
    cases: Cases
    flat: bool  # X was cases x time


def _is_ragged(X: Any) -> bool:
    arrays = isinstance(X, list | tuple) and all(isinstance(one, np.ndarray) and one.ndim == 2 for one in X)
    return arrays and len(X) > 0


class _SeriesEstimator(BaseEstimator):
    """What both have in common: how X is read, and how a recipe is trained."""

    recipe: str
    settings: Sequence[str]
    steps: int | None
    random_state: Any
    _numeric = False  # whether y is numbers
    _task: str

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.three_d_array = True
        return tags

    def _learned(self, X: Any, y: Any) -> tuple[_Given, Any]:
        """What `fit` is given; y is an array, or None where it may be."""
        if _is_ragged(X):
            return self._ragged(X, reset=True), y
        if y is None and not self.__sklearn_tags__().target_tags.required:
            return self._given(X, reset=True), None
        X, y = validate_data(self, X, y, multi_output=True, y_numeric=self._numeric, **RULES)
        return self._split(X, reset=True), y

    def _given(self, X: Any, *, reset: bool = False) -> _Given:
        """What `predict` is given: as many channels as `fit` was, or as many steps where X is cases x time."""
        if _is_ragged(X):
            return self._ragged(X, reset)
        return self._split(validate_data(self, X, reset=reset, **RULES), reset)

    def _split(self, X: np.ndarray, reset: bool) -> _Given:
        if X.ndim not in (2, 3):
            raise ValueError(
                f"Expected 2D array of cases x time, or 3D array of cases x channels x time, got {X.ndim}D array "
                "instead. Reshape your data: X.reshape(1, -1) is one case"
            )
        if reset:
            self.n_features_in_ = X.shape[1]
        if X.shape[1] != self.n_features_in_:
            raise ValueError(
                f"X has {X.shape[1]} features, but {type(self).__name__} is expecting {self.n_features_in_} "
                "features as input"
            )
        return _Given(list(X[:, None] if X.ndim == 2 else X), X.ndim == 2)

    def _ragged(self, X: Sequence[np.ndarray], reset: bool) -> _Given:
        """A list of arrays channels x time."""
        cases = [np.asarray(one, np.float64) for one in X]
        if reset:
            self.n_features_in_ = cases[0].shape[0]
        for index, one in enumerate(cases):
            if one.shape[0] != self.n_features_in_ or not one.shape[1]:
                raise ValueError(
                    f"case {index} has the shape {one.shape}; it needs {self.n_features_in_} channels"
                )
            if np.isinf(one).any():
                raise ValueError(f"case {index} has an infinite value")
        return _Given(cases, False)

    def _run(self) -> tuple[Run, SeriesData]:
        seed = self.random_state
        if not isinstance(seed, int | np.integer):
            seed = check_random_state(seed).randint(2**31 - 1)
        with _value_errors():
            run = settle(prepare(self.recipe, settings=self.settings, seed=int(seed), steps=self.steps))
        if not isinstance(run.data, SeriesData) or run.data.task != self._task:
            right = "forecast" if self._task == "forecast" else "classify"
            raise ValueError(f"{self.recipe} is no recipe for {type(self).__name__}; {right} is one")
        return run, run.data

    def _train(self, run: Run, material: Material) -> None:
        with _value_errors():
            self.run_, self.network_ = train_in_memory(run, material)
        self.codec_ = material.codec


@contextlib.contextmanager
def _value_errors() -> Iterator[None]:
    """scikit-learn expects wrong input to be a ValueError."""
    try:
        yield
    except BadInput as error:
        raise ValueError(str(error)) from error


def _table(cases: Cases, labels: Sequence[str] | None = None) -> SeriesTable:
    """Cases as series named by their number; one without any value is a row of zeros, so that none is lost."""
    found = []
    for index, case in enumerate(cases):
        values = case.T if np.isfinite(case).any() else np.zeros_like(case.T)
        label = None if labels is None else np.array([labels[index]])
        found.append(Series(f"{index}", values, f"case {index}", label))
    return SeriesTable.of(found, [f"{channel}" for channel in range(cases[0].shape[0])])


class SeriesClassifier(ClassifierMixin, _SeriesEstimator):
    """The network of a recipe that names classes: `classify`, or one of your own."""

    _task = "classes"

    def __init__(
        self,
        recipe: str = "classify",
        *,
        settings: Sequence[str] = (),
        steps: int | None = None,
        random_state: Any = 0,
    ) -> None:
        self.recipe = recipe
        self.settings = settings
        self.steps = steps
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.poor_score = True  # on tables whose columns are no steps of time
        return tags

    def fit(self, X: Any, y: Any, groups: Any = None) -> SeriesClassifier:
        """Train; cases of one group are never on both sides of the split for validation."""
        given, y = self._learned(X, y)
        y = column_or_1d(y, warn=True)
        check_classification_targets(y)
        if len(given.cases) != len(y):
            raise ValueError(f"X has {len(given.cases)} cases, and y has {len(y)} labels")
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError("y has one class; a classifier needs at least two classes")
        run, data = self._run()
        table = _table(given.cases, [f"{code:09d}" for code in codes.tolist()])
        if groups is not None:
            if len(groups) != len(y):
                raise ValueError(f"X has {len(y)} cases, and groups has {len(groups)} names")
            table = replace(table, groups=tuple(map(str, groups)))
        with _value_errors():
            material = label_material(data, table, run.seed, None)
        self._train(run, material)
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """[n, K], in the order of `classes_`."""
        check_is_fitted(self)
        assert isinstance(self.codec_, SeriesCodec)
        rows = labelled_windows(_table(self._given(X).cases), self.codec_, 0)
        found = probabilities(self.network_, rows, BATCH, contextlib.nullcontext)
        return np.asarray(found / found.sum(1, keepdims=True))

    def predict(self, X: Any) -> np.ndarray:
        """[n]: the likeliest class of each case."""
        check_is_fitted(self)
        return np.asarray(self.classes_[self.predict_proba(X).argmax(1)])


class SeriesForecaster(RegressorMixin, _SeriesEstimator):
    """The network of a recipe that forecasts: `forecast`, or one of your own.

    `horizon` 0 is that of y, or of the data's frequency. X is the history of each case; y, where it is given, is
    what comes after it: n x H of one channel, n x C x H of several, or n for a single step.
    """

    _numeric = True
    _task = "forecast"

    def __init__(
        self,
        recipe: str = "forecast",
        *,
        horizon: int = 0,
        settings: Sequence[str] = (),
        steps: int | None = None,
        random_state: Any = 0,
    ) -> None:
        self.recipe = recipe
        self.horizon = horizon
        self.settings = settings
        self.steps = steps
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = False
        tags.target_tags.multi_output = True
        tags.regressor_tags.poor_score = True  # where y is no continuation of X
        return tags

    def fit(self, X: Any, y: Any = None) -> SeriesForecaster:
        """Train on the histories, and on what came after them where y says it."""
        given, y = self._learned(X, y)
        if self.horizon < 0:
            raise ValueError(f"horizon is {self.horizon}; it is a number of steps, or 0 for that of the data")
        cases, (run, data) = given.cases, self._run()
        self.single_, horizon, changes = False, self.horizon, {}
        if y is not None:
            after = np.asarray(y, np.float64)
            self.single_ = after.ndim == 1
            after = after.reshape(len(cases), -1, 1 if self.single_ else after.shape[-1])
            if len(after) != len(cases) or any(
                a.shape[0] != c.shape[0] for a, c in zip(after, cases, strict=True)
            ):
                raise ValueError(f"y of the shape {np.shape(y)} does not go on with the channels of X")
            cases = [np.concatenate(pair, 1) for pair in zip(cases, after, strict=True)]
            horizon, changes = horizon or after.shape[2], {"held": 0}
        changes |= {"horizon": horizon} if horizon else {}
        data = data.model_copy(update=changes)
        with _value_errors():
            material = forecast_material(data, _table(cases), None)
        self._train(run.model_copy(update={"data": data}), material)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Medians, n x C x H; n x H for X of cases x time; n where y was one value for each case."""
        check_is_fitted(self)
        given = self._given(X)
        return self._shaped(self._forecasts(given.cases).median, given)

    def predict_quantiles(self, X: Any, levels: Sequence[float]) -> np.ndarray:
        """As `predict`, with one more axis: the quantiles at these levels, which lie between 0 and 1."""
        check_is_fitted(self)
        if not all(0 < level < 1 for level in levels):
            raise ValueError(f"levels lie between 0 and 1, and {list(levels)} do not")
        given = self._given(X)
        found = self._forecasts(given.cases)
        return np.stack([self._shaped(found.at(level), given) for level in levels], -1)

    def _forecasts(self, cases: Cases) -> Forecasts:
        """Each channel of each case by itself; NaN where it has no value."""
        codec = self.codec_
        assert isinstance(codec, SeriesCodec)
        longest = max(codec.histories)
        windows = np.full((len(cases) * cases[0].shape[0], longest), np.nan)
        for row, channel in enumerate(channel for case in cases for channel in case):
            last = channel[-longest:]
            windows[row, longest - len(last) :] = last
        unknown = np.asarray(np.isnan(windows).all(1))
        windows[unknown, -1] = 0.0
        found = forecast(self.network_, codec, windows, BATCH, contextlib.nullcontext, codec.horizon)
        return replace(found, quantiles=np.where(unknown[:, None, None], np.nan, found.quantiles))

    def _shaped(self, found: np.ndarray, given: _Given) -> np.ndarray:
        found = found.reshape(len(given.cases), -1, found.shape[-1])
        if self.single_:
            return np.asarray(found[:, 0, 0])
        return np.asarray(found[:, 0]) if given.flat else found
