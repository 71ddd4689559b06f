"""Studies on a finished run: how scores grow with the data, what each stage is worth, and whether other models say the same."""
