"""An app with secure aggregation, whose clients hold the model, that runs on a SuperLink."""
