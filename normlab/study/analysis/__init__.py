"""What do records show?"""
