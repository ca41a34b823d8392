"""State, one step body, its transforms over devices, the loop, checkpoints and logs."""
