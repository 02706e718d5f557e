"""How often the doctor is right: planted faults, healthy models, and the rates of both."""
