"""`fastlstm.decode` and `fastlstm.Decoder`: ids drawn from a TokenLSTM and an output layer (`decode.py`)."""
