"""Settings found by trying them: the micro-batch that fits, and the learning rate that works."""
