"""The prompt language: text to a tree, a tree to what each step reads. It knows no network."""
