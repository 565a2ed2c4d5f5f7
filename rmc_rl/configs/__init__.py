"""YAML files: the defaults of every verb, core and family of worlds."""
