"""What one CUDA GPU does with a recipe."""
