"""How a model is made: an encoder is found, fine-tuned, and exported to a model folder; torch lives only here."""

import os

# Threads that spin while they wait for each other make training ten times slower as soon as another program wants a
# core, and gain nothing on an idle machine; OpenMP reads this when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
