"""Text and its ids: corpora by name, text sources, vocabulary, splits into training and validation batches."""
