"""What a reward meets that is no fault of its answers: which kind it is, and how long to wait before another try."""
