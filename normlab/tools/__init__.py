"""Tools for a trained model: estimate its running statistics again."""
