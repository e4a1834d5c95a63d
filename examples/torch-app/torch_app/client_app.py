"""torch-app: what a client does."""

from __future__ import annotations

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch.utils.data import DataLoader

from torch_app import task

app = ClientApp()


@app.train()
def train(msg: Message, context: Context) -> Message:
    """Train the model on local data."""
    model = received_model(msg)
    examples, _ = local_data(context)
    loss = task.train(
        model,
        examples,
        epochs=int(context.run_config["local-epochs"]),
        lr=float(msg.content["config"]["lr"]),
    )
    metrics = {"train_loss": loss, "num-examples": len(examples.dataset)}
    content = RecordDict(
        {"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord(metrics)}
    )
    return Message(content=content, reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context) -> Message:
    """Test the model on local data."""
    model = received_model(msg)
    _, examples = local_data(context)
    loss, accuracy = task.test(model, examples)
    metrics = {"eval_loss": loss, "eval_acc": accuracy, "num-examples": len(examples.dataset)}
    return Message(content=RecordDict({"metrics": MetricRecord(metrics)}), reply_to=msg)


def received_model(msg: Message) -> task.Net:
    """Return the model that the server sent."""
    model = task.Net()
    model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    return model


def local_data(context: Context) -> tuple[DataLoader, DataLoader]:
    """Return this client's examples."""
    return task.load_data(
        int(context.node_config["partition-id"]),
        int(context.node_config["num-partitions"]),
        int(context.run_config["batch-size"]),
    )
