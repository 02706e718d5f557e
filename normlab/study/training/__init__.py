"""How does one model get its numbers?"""
