"""The default model, shipped inside the package."""
