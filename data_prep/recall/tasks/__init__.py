"""One file a task: each sets `TASK`. The registry finds them by themselves."""
