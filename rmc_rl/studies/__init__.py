"""Numbers and pictures from runs. This room knows no agent and no world."""
