"""The one-machine stack: a real Kafka, MLflow and the workers, kept running by a supervisor, all below one folder."""
