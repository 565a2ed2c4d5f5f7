"""The command line that all verbs share: Hydra with one-line errors, the schema of the keys, progress, signals, devices."""
