"""Training straight from documents, for text too large to prepare."""
