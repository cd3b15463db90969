"""What happens inside a trained model: traces, labels of a text, and the search for cells that follow a label."""
