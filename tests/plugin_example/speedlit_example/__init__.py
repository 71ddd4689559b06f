"""A plug-in package."""
