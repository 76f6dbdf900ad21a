"""The Kafka side: readings in, windows, drift out. Knows nothing of training or deployment."""
