"""Where do runs run?"""
