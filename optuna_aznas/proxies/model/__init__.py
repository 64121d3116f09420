"""Running a model and leaving it untouched: weights, isolation, nested inputs."""
