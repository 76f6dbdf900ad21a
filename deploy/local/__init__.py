"""The one-machine stack: a real Kafka, an MLflow server and our processes under one supervisor."""
