"""What several worlds share: keywords, balls, grids, mazes, digits, programs, drawing."""
