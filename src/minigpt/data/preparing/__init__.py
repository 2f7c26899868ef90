"""From documents to shards of token ids, once, on all cores, resumable."""
