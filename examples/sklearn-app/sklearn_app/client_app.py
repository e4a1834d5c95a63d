"""sklearn-app: what a client does."""

from __future__ import annotations

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from sklearn.neural_network import MLPClassifier

from sklearn_app import task

app = ClientApp()


@app.train()
def train(msg: Message, context: Context) -> Message:
    """Train the model on local data."""
    model = received_model(msg, context)
    examples, _ = local_data(context)
    loss = task.train(model, examples, epochs=int(context.run_config["local-epochs"]))
    metrics = {"train_loss": loss, "num-examples": len(examples[0])}
    content = RecordDict(
        {"arrays": ArrayRecord(task.get_arrays(model)), "metrics": MetricRecord(metrics)}
    )
    return Message(content=content, reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context) -> Message:
    """Test the model on local data."""
    model = received_model(msg, context)
    _, examples = local_data(context)
    loss, accuracy = task.test(model, examples)
    metrics = {"eval_loss": loss, "eval_acc": accuracy, "num-examples": len(examples[0])}
    return Message(content=RecordDict({"metrics": MetricRecord(metrics)}), reply_to=msg)


def received_model(msg: Message, context: Context) -> MLPClassifier:
    """Return the model that the server sent."""
    config = context.run_config
    model = task.make_model(float(config["learning-rate"]), int(config["batch-size"]))
    task.set_arrays(model, msg.content["arrays"].to_numpy_ndarrays())
    return model


def local_data(context: Context) -> tuple[task.Examples, task.Examples]:
    """Return this client's examples."""
    config = context.node_config
    return task.load_data(int(config["partition-id"]), int(config["num-partitions"]))
