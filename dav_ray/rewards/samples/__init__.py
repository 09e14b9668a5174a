"""The samples that rewards are shown: pixels or float32, and how they come from the model's device."""
