"""An app with a client that can misbehave, which runs on a SuperLink in the tests."""
