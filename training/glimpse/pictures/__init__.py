"""Drawing where the glimpse model looks."""
