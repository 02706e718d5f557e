"""How does one process make a record?"""
