"""Training steps and epochs: the loss, the optimizer, schedules, and checks of configs."""
