"""What several worlds share: balls, grids, mazes, digits, programs, drawing."""
