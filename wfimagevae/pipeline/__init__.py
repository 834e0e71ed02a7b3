"""Several trainings one after another, from one YAML file."""
