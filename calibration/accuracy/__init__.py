"""How well a model detects: AP by class and by darkness, and what a change of it costs."""
