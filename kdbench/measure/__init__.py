"""What things cost: throughput and latency of networks, operations, the environment."""
