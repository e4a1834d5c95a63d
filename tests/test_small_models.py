"""Models of a few parameters learn with the two lines as they do without."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from federations import Federation, fedavg, rounds
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

from fl_darex.clients import DarexMod
from fl_darex.strategies import DarexStrategy

CLIENTS, ROUNDS = 4, 10
X, Y = load_iris(return_X_y=True)
FLOWERS = {"coef": np.zeros((3, 4)), "intercept": np.zeros(3)}


def client_app(train: Any, mods: list[Any]) -> ClientApp:
    """A ClientApp around a function of tensors, partition and round."""
    app = ClientApp(mods=mods)

    @app.train()
    def reply(message: Message, context: Context) -> Message:
        tensors = {name: array.numpy() for name, array in message.content["arrays"].items()}
        round_ = message.content["config"]["server-round"]
        trained = train(tensors, context.node_config["partition-id"], round_)
        record = ArrayRecord({name: Array(value) for name, value in trained.items()})
        metrics = MetricRecord({"num-examples": 1})
        return Message(RecordDict({"arrays": record, "metrics": metrics}), reply_to=message)

    return app


def regression(tensors: dict[str, np.ndarray]) -> LogisticRegression:
    model = LogisticRegression(max_iter=1, warm_start=True, solver="saga", random_state=0)
    model.classes_ = np.arange(3)
    model.coef_, model.intercept_ = tensors["coef"].copy(), tensors["intercept"].copy()
    return model


def fit_flowers(tensors: dict[str, np.ndarray], partition: int, round_: int) -> dict[str, Any]:
    model = regression(tensors)
    model.fit(X[partition::CLIENTS], Y[partition::CLIENTS])
    return {"coef": model.coef_, "intercept": model.intercept_}


def add_a_random_number(
    tensors: dict[str, np.ndarray], partition: int, round_: int
) -> dict[str, Any]:
    drawn = np.random.default_rng([partition, round_]).random((1, 1))
    return {name: value + drawn for name, value in tensors.items()}


def learned(train: Any, model: dict[str, np.ndarray], lines: bool) -> dict[str, np.ndarray]:
    """Return the model after all rounds, without the two lines or with them as they are."""
    app = client_app(train, [DarexMod()] if lines else [])
    strategy = DarexStrategy(fedavg()) if lines else fedavg()
    result = rounds(strategy, Federation(app, CLIENTS), ROUNDS, model)
    return {name: array.numpy() for name, array in result.arrays.items()}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_scikit_learn_model_of_15_parameters_learns_as_it_does_without():
    plain, sent = (learned(fit_flowers, FLOWERS, lines) for lines in (False, True))
    assert all((sent[name] != before).all() for name, before in FLOWERS.items()), sent
    right = [(regression(model).predict(X) == Y).mean() for model in (plain, sent)]
    assert right[0] > 0.9 and abs(right[1] - right[0]) <= 0.02, right
    for name, value in plain.items():  # each round's change is rounded to fp16: 2**-10 of it
        assert np.abs(sent[name] - value).max() <= ROUNDS * 2**-10 * np.abs(value).max(), name


def test_a_model_of_one_parameter_learns_as_it_does_without():
    model = {"w": np.ones((1, 1))}
    plain, sent = (learned(add_a_random_number, model, lines)["w"] for lines in (False, True))
    assert abs(sent - plain) <= 2**-10 * (plain - 1), (sent, plain)
