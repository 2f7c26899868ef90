"""Several models of one shape into one: see `minigpt.interop.merge.run.merge_models`. Importing it needs no torch."""
