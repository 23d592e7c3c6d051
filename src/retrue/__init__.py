"""retrue keeps a text classifier true: it serves it, watches it, retrains it, and promotes what has proved itself."""

import os

# onnxruntime 1.29 and later report usage over the network unless told not to before its import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
