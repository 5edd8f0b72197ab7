"""Models of other libraries, a module for each library; `registry` finds the one for a model."""
