"""Shards that lie somewhere else, and the copies of them that are kept here."""
