"""What a model will be fed, for people to look at."""
