"""What the house measures, and how sure it is: tasks, the one encoder, the run, and the bootstrap."""
