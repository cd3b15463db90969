"""Options of a training run of a second."""

OPTIONS = ["--rnn-size", "12", "--batch-size", "4", "--seq-length", "20", "--max-epochs", "1", "--print_every", "5"]
