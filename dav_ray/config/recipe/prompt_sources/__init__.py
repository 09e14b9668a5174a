"""Where prompts come from: lines of text or JSON, tables, templates. All raise ValueError in words for the user."""
