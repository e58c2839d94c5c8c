"""The recall tasks, one file each, which sets `TASK` and is found by the registry."""
