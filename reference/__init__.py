"""The generated pages of the documentation: settings, recipes, command line and REST, written from the code."""
