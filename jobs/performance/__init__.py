"""What accepted samples and optimizer steps cost, beside the network alone."""
