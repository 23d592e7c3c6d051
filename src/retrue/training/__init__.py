"""How a model is made: an encoder is found, fine-tuned, and exported to a model folder; torch lives only here."""
